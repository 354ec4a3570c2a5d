"""The families of OpenMMLab distributions, and the project's environment for each stack."""
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Variables that would mix other packages, or another target folder, into the environment.
FOREIGN_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT')


@dataclass(frozen=True)
class Stack:
    """Tested versions of one family, and the environment that holds them.

    Attributes:
        name: as people write it; in lower case what `--stack` and the extras of setup.py say.
        packages: import name -> distribution name.
        pythons: supported versions; the first one found makes the environment.
        folder: of the environment.
    """

    name: str
    packages: dict[str, str]
    pythons: tuple[str, ...]
    folder: str

    @property
    def key(self) -> str:
        return self.name.lower()

    @property
    def family(self) -> str:
        """Key of the first stack with the same distributions."""
        return self.key.partition('-')[0]

    @property
    def command(self) -> str:
        """Set the environment up, or continue an interrupted set-up."""
        return 'python3 tools/environment.py' + f' --stack {self.key}' * (self.key != 'onedl')

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
        text = config.read_text() if config.is_file() else ''
        found = re.search(r'^version\w* *= *(\d+\.\d+)', text, re.MULTILINE)
        return found.group(1) if found else ''

    def site_packages(self) -> Path:
        """Package folder of the environment; it need not exist."""
        return self.venv / 'lib' / f'python{self.venv_version()}' / 'site-packages'

    def installed(self) -> dict[str, str]:
        """Distribution -> version without flavour, from folder names: this has to be instant."""
        folders = (info.stem.rpartition('-') for info in self.site_packages().glob('*.dist-info'))
        return {normal(name): version.partition('+')[0] for name, _, version in folders}

    def fingerprint(self) -> str:
        """Hash of all that determines the environment, its place included."""
        files = (self.constraints.read_text(), (ROOT / 'setup.py').read_text())
        return hashlib.sha256('\n'.join([*files, str(ROOT), self.venv_version()]).encode()
                              ).hexdigest()

    def is_ready(self) -> bool:
        """Whether the environment is complete and holds this family alone, in tested versions."""
        stamp = self.venv / 'setup.stamp'
        if not self.python.exists() or not stamp.is_file():
            return False
        installed, pins = self.installed(), self.pins()
        return (stamp.read_text() == self.fingerprint() and [*families(installed)] == [self.family]
                and all(installed.get(name) == pins[name]
                        for name in [*self.packages.values(), 'torch', 'torchvision']))

    def variables(self) -> dict[str, str]:
        """The caller's variables, as after activating the environment.

        A GPU is hidden where mmcv was built without ops for it.
        """
        env = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        env.update(PATH=f'{self.python.parent}{os.pathsep}{env.get("PATH", os.defpath)}',
                   VIRTUAL_ENV=str(self.venv), PIP_USER='0', PYTHONNOUSERSITE='1')
        ops = self.venv / 'mmcv-ops'
        if ops.is_file() and ops.read_text() == 'cpu':
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
    }, ('3.11', '3.12', '3.10'), '.venv'),
    # Wheels of mmcv 2.1.0 and torch 2.1 are easiest to find for 3.10; torch 2.1 ends at 3.11.
    Stack('upstream', UPSTREAM, ('3.10', '3.11'), '.venv-upstream'),
    # An opt-in: mmcv 2.2.0, which mmdet and mmseg refuse unedited, on a recent torch.
    Stack('upstream-newest', UPSTREAM, ('3.11',), '.venv-upstream-newest'),
)}
UPSTREAM_ONLY = {'mmcv-full', 'mmcv-lite', 'mmengine-lite'}


def normal(name: str) -> str:
    """Distribution name in the form in which package indexes compare names."""
    return re.sub(r'[-_.]+', '-', name).lower()


def families(distributions: Iterable[str]) -> dict[str, list[str]]:
    """Key of a family -> its distributions among the given names; those without any left out."""
    names = set(map(normal, distributions))
    found = {'onedl': names & {*STACKS['onedl'].packages.values()},
             'upstream': names & {*UPSTREAM.values(), *UPSTREAM_ONLY}}
    return {key: sorted(members) for key, members in found.items() if members}


def compiler() -> str | None:
    """Path of the C++ compiler that a build would use."""
    return shutil.which((os.environ.get('CXX') or 'c++').split(' ')[0])


def nvcc() -> str | None:
    """Path of the CUDA compiler, where torch looks for it too."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    folders = (home and os.path.join(home, 'bin'), os.environ.get('PATH'), '/usr/local/cuda/bin')
    return shutil.which('nvcc', path=os.pathsep.join(filter(None, folders)))
