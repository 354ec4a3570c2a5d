"""The families of OpenMMLab distributions, and the project's environment for each stack."""
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Variables that would mix other packages, or another target folder, into the environment.
FOREIGN_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT')


def normal(name: str) -> str:
    """Distribution name in the form in which package indexes compare names."""
    return re.sub(r'[-_.]+', '-', name).lower()


class Stack:
    """Tested versions of one family, and the environment that holds them.

    Args:
        name: as people write it; in lower case what `--stack` and the extras of setup.py say.
        packages: import name -> distribution name.
        pythons: supported versions; the first one found makes the environment.

    Attributes:
        family: key of the first stack with the same distributions.
        command: sets the environment up, or continues an interrupted set-up.
        stamp: holds the fingerprint of a complete environment.
        ops: holds 'cpu' or 'cuda', what the ops of mmcv were built for.
        log, scratch: all of pip's output; temporary files of a set-up.
        pins: distribution -> tested version, of the lines that hold for every Python.
    """

    def __init__(self, name: str, packages: dict[str, str], *pythons: str) -> None:
        self.name, self.packages, self.pythons = name, packages, pythons
        self.key = name.lower()
        self.family = self.key.partition('-')[0]
        self.mmcv = packages['mmcv']
        self.command, self.folder = 'python3 tools/environment.py', '.venv'
        if self.key != 'onedl':
            self.command += f' --stack {self.key}'
            self.folder += f'-{self.key}'
        self.venv = ROOT / self.folder
        self.python = self.venv / 'bin' / 'python'
        self.stamp, self.log = self.venv / 'setup.stamp', self.venv / 'setup.log'
        self.ops, self.scratch = self.venv / 'mmcv-ops', self.venv / 'setup-tmp'
        self.constraints = ROOT / 'tools' / f'constraints-{self.key}.txt'
        lines = re.findall(r'^([\w.-]+)==([\w.]+) *$', self.constraints.read_text(), re.MULTILINE)
        self.pins = {normal(name): version for name, version in lines}

    def pinned(self, *names: str) -> list[str]:
        """Requirements of distributions in their tested versions."""
        return [f'{name}=={self.pins[name]}' for name in names]

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
        text = '\n'.join([*files, str(ROOT), self.venv_version()])
        return hashlib.sha256(text.encode()).hexdigest()

    def is_ready(self) -> bool:
        """Whether the environment is complete and holds this family alone, in tested versions."""
        if not self.python.exists() or not self.stamp.is_file():
            return False
        installed, needed = self.installed(), [*self.packages.values(), 'torch', 'torchvision']
        return (self.stamp.read_text() == self.fingerprint()
                and [*families(installed)] == [self.family]
                and all(installed.get(name) == self.pins[name] for name in needed))

    def variables(self) -> dict[str, str]:
        """The caller's variables, as after activating the environment.

        A GPU is hidden where mmcv was built without ops for it.
        """
        env = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
        env.update(PATH=f'{self.python.parent}{os.pathsep}{env.get("PATH", os.defpath)}',
                   VIRTUAL_ENV=str(self.venv), PIP_USER='0', PYTHONNOUSERSITE='1')
        if self.ops.is_file() and self.ops.read_text() == 'cpu':
            env.setdefault('CUDA_VISIBLE_DEVICES', '')
        return env


ONEDL = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection',
         'mmseg': 'onedl-mmsegmentation', 'mmpretrain': 'onedl-mmpretrain'}
UPSTREAM = {'mmengine': 'mmengine', 'mmcv': 'mmcv', 'mmdet': 'mmdet', 'mmseg': 'mmsegmentation',
            'mmpretrain': 'mmpretrain'}
UPSTREAM_ONLY = {'mmcv-full', 'mmcv-lite', 'mmengine-lite'}
STACKS = {stack.key: stack for stack in (
    Stack('OneDL', ONEDL, '3.11', '3.12', '3.10'),
    # Wheels of mmcv 2.1.0 and torch 2.1 are easiest to find for 3.10; torch 2.1 ends at 3.11.
    Stack('upstream', UPSTREAM, '3.10', '3.11'),
    # An opt-in: mmcv 2.2.0, which mmdet and mmseg refuse unedited, on a recent torch.
    Stack('upstream-newest', UPSTREAM, '3.11'),
)}


def families(distributions: Iterable[str]) -> dict[str, list[str]]:
    """Key of a family -> its distributions among the given names; those without any left out."""
    names = set(map(normal, distributions))
    found = {'onedl': names & {*ONEDL.values()},
             'upstream': names & {*UPSTREAM.values(), *UPSTREAM_ONLY}}
    return {key: sorted(members) for key, members in found.items() if members}
