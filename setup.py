"""Packaging of xvit_mm.

No OpenMMLab distribution stands in `install_requires`: two families, OneDL and upstream, give the
same import names, and installing this package must not pull one over the other. The extras
`[onedl]` and `[upstream]` name them.
"""
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

UPSTREAM = [
    'mmengine==0.10.7',
    'mmdet==3.3.0',
    'mmsegmentation==1.2.2',
    'mmpretrain==1.2.0',
    'torchvision',
    'ftfy',
    'regex',
]
EXTRAS = {
    'onedl': [
        'onedl-mmengine==0.10.12',
        'onedl-mmcv==2.3.6',
        'onedl-mmdetection==3.5.1',
        'onedl-mmsegmentation==1.4.2',
        'onedl-mmpretrain==1.3.6',
        'torchvision',
        'faster-coco-eval',
    ],
    'upstream': ['mmcv>=2.1.0,<2.2.0', *UPSTREAM],
    # mmdet and mmsegmentation refuse this mmcv on import: docs/stacks.md says how they take it.
    'upstream-newest': ['mmcv==2.2.0', *UPSTREAM],
    # For released weights that are on Google Drive.
    'weights': ['gdown'],
    'export': ['onnx', 'onnxruntime', 'onnxscript'],
    'dev': [
        'pytest',
        'pytest-xdist',
        'hypothesis',
        'mypy',
        'ruff',
        'timm',
        'gdown',
        'onnx',
        'onnxruntime',
        'onnxscript',
        'faster-coco-eval',
    ],
}


class BuildWithConfigs(build_py):
    """Puts what `mim` looks for into the wheel, as `xvit_mm/.mim/`: configs, tools, the index.

    Copied while building, so that the checkout holds them once; an editable install uses the
    checkout's own folders.
    """

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        for_mim = Path(self.build_lib, 'xvit_mm', '.mim')
        for folder in ('configs', 'tools'):
            shutil.rmtree(for_mim / folder, ignore_errors=True)
            shutil.copytree(
                ROOT / folder, for_mim / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', for_mim)


def version() -> str:
    """`__version__` of the package, read without importing it (torch may be missing)."""
    source = (ROOT / 'xvit_mm' / '__init__.py').read_text(encoding='utf-8')
    found = re.search(r'^__version__ = [\'"]([^\'"]+)[\'"]', source, re.MULTILINE)
    if found is None:
        raise ValueError("xvit_mm/__init__.py has no line like __version__ = '1.2.3'")
    return found.group(1)


def description() -> str:
    """Text of the package's page, from the README where there is one."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setup(
    name='xvit_mm',
    version=version(),
    description='Vision transformer backbones for OpenMMLab 2.x: mmdet, mmseg and mmpretrain',
    long_description=description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='vision transformer, backbone, object detection, segmentation, OpenMMLab, PyTorch',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['xvit_mm', 'xvit_mm.*']),
    include_package_data=True,
    # 3.9, whose support has ended, has no annotations like `int | None`.
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'einops', 'typing_extensions'],
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,
)
