"""The two families of OpenMMLab distributions, and the project's environment for each."""
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')

# Variables that would mix other packages, or another target folder, into the environment.
FOREIGN_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT')


@dataclass(frozen=True)
class Stack:
    """One family, and where its environment lies.

    Attributes:
        packages: import name -> distribution name.
        pythons: supported versions; the first one found makes the environment.
    """

    name: str
    packages: dict[str, str]
    pythons: tuple[str, ...]
    folder: str
    any_python: bool

    @property
    def key(self) -> str:
        """As `--stack` and the extras of setup.py spell it."""
        return self.name.lower()

    @property
    def family(self) -> str:
        """Key of the first stack with the same distributions."""
        return self.key.partition('-')[0]

    @property
    def extras(self) -> str:
        return f'.[{self.key},dev]'

    @property
    def venv(self) -> Path:
        return ROOT / self.folder

    @property
    def python(self) -> Path:
        return self.venv / 'bin' / 'python'

    @property
    def constraints(self) -> Path:
        return ROOT / 'tools' / f'constraints-{self.key}.txt'

    @property
    def mmcv(self) -> str:
        return self.packages['mmcv']

    @property
    def command(self) -> str:
        """Set the environment up, repair it, or leave it as it is."""
        return 'python3 tools/environment.py' + (
            '' if self.key == 'onedl' else f' --stack {self.key}')

    def pins(self) -> dict[str, str]:
        """Distribution -> tested version, of the lines that hold for every Python."""
        found = re.findall(r'^([\w.-]+)==([\w.]+) *$', self.constraints.read_text(), re.MULTILINE)
        return {normal(name): version for name, version in found}

    def pinned(self, name: str) -> str:
        """Requirement of a distribution in its tested version."""
        return f'{name}=={self.pins()[name]}'

    def venv_version(self) -> str:
        """Python version of the environment, '' without one."""
        config = self.venv / 'pyvenv.cfg'
        found = config.is_file() and re.search(
            r'^version\w* *= *(\d+\.\d+\.\d+)', config.read_text(), re.MULTILINE)
        return found.group(1) if found else ''

    def site_packages(self) -> Path:
        """Package folder of the environment; it need not exist."""
        minor = '.'.join(self.venv_version().split('.')[:2])
        return self.venv / 'lib' / f'python{minor}' / 'site-packages'

    def installed(self) -> dict[str, str]:
        """Distribution -> version in the environment, from folder names: this has to be instant."""
        folders = (info.stem.rpartition('-') for info in self.site_packages().glob('*.dist-info'))
        return {normal(name): version for name, _, version in folders}

    def has_pinned(self, name: str) -> bool:
        """Whether a distribution is there in its tested version, of whatever flavour."""
        return self.installed().get(normal(name), '').split('+')[0] == self.pins()[name]

    def fingerprint(self) -> str:
        """Hash of all that determines the environment, its place included."""
        parts = (self.constraints.read_text(), (ROOT / 'setup.py').read_text(), str(ROOT),
                 self.extras, self.venv_version())
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

    def is_ready(self) -> bool:
        """Whether the environment is complete and holds this family alone, in tested versions."""
        stamp = self.venv / 'setup.stamp'
        return (self.python.exists() and stamp.is_file()
                and stamp.read_text() == self.fingerprint()
                and all(map(self.has_pinned, [*self.packages.values(), 'torch', 'torchvision']))
                and list(families(self.installed())) == [self.family])

    def variables(self) -> dict[str, str]:
        """The caller's variables, as after activating the environment.

        A GPU is hidden where mmcv was built without ops for it.
        """
        env = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        env.update(PATH=f'{self.python.parent}{os.pathsep}{env.get("PATH", os.defpath)}',
                   VIRTUAL_ENV=str(self.venv), PIP_USER='0', PYTHONNOUSERSITE='1')
        built_for = self.venv / 'mmcv-built-for'
        if built_for.is_file() and built_for.read_text().split()[1:] == ['cpu']:
            env.setdefault('CUDA_VISIBLE_DEVICES', '')
        return env


UPSTREAM = {
    'mmengine': 'mmengine',
    'mmcv': 'mmcv',
    'mmdet': 'mmdet',
    'mmseg': 'mmsegmentation',
    'mmpretrain': 'mmpretrain',
}
STACKS = {stack.key: stack for stack in (
    Stack('OneDL', {
        'mmengine': 'onedl-mmengine',
        'mmcv': 'onedl-mmcv',
        'mmdet': 'onedl-mmdetection',
        'mmseg': 'onedl-mmsegmentation',
        'mmpretrain': 'onedl-mmpretrain',
    }, pythons=('3.11', '3.12', '3.10'), folder='.venv', any_python=True),
    # Wheels of mmcv 2.1.0 and torch 2.1 are easiest to find for 3.10; torch 2.1 ends at 3.11.
    Stack('upstream', UPSTREAM, pythons=('3.10', '3.11'), folder='.venv-upstream',
          any_python=False),
    # An opt-in: mmcv 2.2.0, which mmdet and mmseg refuse unedited, on a recent torch.
    Stack('upstream-newest', UPSTREAM, pythons=('3.11',), folder='.venv-upstream-newest',
          any_python=False),
)}
UPSTREAM_ONLY = {'mmcv-full', 'mmcv-lite', 'mmengine-lite'}


def normal(name: str) -> str:
    """Distribution name in the form in which package indexes compare names."""
    return re.sub(r'[-_.]+', '-', name).lower()


def families(distributions: Iterable[str]) -> dict[str, list[str]]:
    """Key of a family -> its distributions among the given names; those without any left out."""
    names = set(map(normal, distributions))
    found = {key: sorted(names & set(stack.packages.values())) for key, stack in STACKS.items()
             if key == stack.family}
    found['upstream'] = sorted({*found['upstream'], *(names & UPSTREAM_ONLY)})
    return {key: members for key, members in found.items() if members}


def compiler() -> str | None:
    """Path of the C++ compiler that a build would use."""
    names = (os.environ.get('CXX', '').split(' ')[0], 'c++', 'g++', 'clang++')
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def nvcc() -> str | None:
    """Path of the CUDA compiler, where torch looks for it too."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    folders = (home and os.path.join(home, 'bin'), os.environ.get('PATH'), '/usr/local/cuda/bin')
    return shutil.which('nvcc', path=os.pathsep.join(filter(None, folders)))
