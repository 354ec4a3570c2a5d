"""Vision backbones for OpenMMLab: one class per model for detection, segmentation, classification.

After `import xvit_mm` every class can be named in a config, as `xvit_mm.CrossFormer` or, where no
other package uses the name, as `CrossFormer`. A config that says `xvit_mm.` needs no import at all.
"""
from pathlib import Path

from . import models

__version__ = '0.1.0'
__all__ = ['cfg', 'models']

_PACKAGE = Path(__file__).resolve().parent


def cfg(name: str) -> str:
    """Path of a config that ships with this package.

    `name` is relative to `configs/`, with or without `.py`. In a config of your own:
    `_base_ = [__import__('xvit_mm').cfg('retinanet_crossformer_s_coco')]`.

    Raises:
        FileNotFoundError: no such config; names the ones that come close.
    """
    folders = (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs')
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    path = folder / (name if name.endswith('.py') else f'{name}.py')
    if not path.is_file():
        raise FileNotFoundError(_no_such_config(name, folder))
    return str(path)


def _no_such_config(name: str, folder: Path) -> str:
    from difflib import get_close_matches
    shipped = sorted(path.relative_to(folder).as_posix()[:-3] for path in folder.rglob('*.py'))
    close = get_close_matches(name.removesuffix('.py'), shipped, n=3) or shipped[:3]
    return f'no config {name!r} in {folder}; closest: {", ".join(close) or "none is installed"}'
