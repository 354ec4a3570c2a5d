"""The project's `.venv`: its paths, what is in it, and whether it can be used as it is."""
import hashlib
import os
import re
from pathlib import Path
from typing import Dict, Tuple

from bootstrap import stack

VENV = stack.ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STAMP = VENV / 'setup.stamp'
SCRATCH = VENV / 'setup-tmp'
BUILT_FOR = VENV / 'mmcv-built-for'

BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')
EXTRAS = '.[onedl,dev]'

# Variables that would mix other packages, or another target folder, into .venv.
FOREIGN_VARIABLES = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT')


def venv_version() -> Tuple[int, ...]:
    """Python version of .venv, () without one."""
    try:
        config = (VENV / 'pyvenv.cfg').read_text(encoding='utf-8')
    except OSError:
        return ()
    found = re.search(r'^version\w*\s*=\s*(\d+)\.(\d+)\.(\d+)', config, re.MULTILINE)
    return tuple(int(part) for part in found.groups()) if found else ()


def site_packages() -> Path:
    """Package folder of .venv; it need not exist."""
    version = venv_version() or (3, 0)
    return VENV / 'lib' / 'python{}.{}'.format(*version[:2]) / 'site-packages'


def installed() -> Dict[str, str]:
    """Distribution -> version in .venv, from folder names: this has to be instant."""
    folders = site_packages().glob('*.dist-info')
    found = (re.match(r'(.+)-([^-]+)\.dist-info$', folder.name) for folder in folders)
    return {stack.normal(match.group(1)): match.group(2) for match in found if match}


def fingerprint() -> str:
    """Hash of all that determines the environment, its place included."""
    parts = [stack.CONSTRAINTS.read_text(encoding='utf-8'),
             (stack.ROOT / 'setup.py').read_text(encoding='utf-8'),
             str(stack.ROOT), EXTRAS, repr(BUILD_TOOLS), repr(venv_version())]
    return hashlib.sha256('\n'.join(parts).encode('utf-8')).hexdigest()


def has_pinned(name: str) -> bool:
    """Whether a distribution is in .venv in its tested version, of whatever flavour."""
    return installed().get(name, '').split('+')[0] == stack.pins()[name]


def has_pinned_stack() -> bool:
    """Whether one family, in the tested versions, is in .venv: others may have changed it."""
    names = list(stack.FAMILIES['OneDL'].values()) + ['torch', 'torchvision']
    return all(map(has_pinned, names)) and set(stack.families(installed())) == {'OneDL'}


def is_ready() -> bool:
    """Whether .venv can be used as it is."""
    try:
        stamp = STAMP.read_text(encoding='utf-8')
    except OSError:
        return False
    return PYTHON.exists() and stamp == fingerprint() and has_pinned_stack()


def set_up_variables() -> Dict[str, str]:
    """The caller's variables, as after activating .venv, without foreign packages."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    path = os.pathsep.join([str(PYTHON.parent), env.get('PATH', os.defpath)])
    return dict(env, PATH=path, VIRTUAL_ENV=str(VENV), PIP_USER='0', PYTHONNOUSERSITE='1')


def run_variables() -> Dict[str, str]:
    """Variables for the project's own programs; a GPU is hidden where mmcv cannot use it."""
    env = set_up_variables()
    built_for = BUILT_FOR.read_text(encoding='utf-8') if BUILT_FOR.exists() else ''
    if built_for.endswith(' cpu\n'):
        env.setdefault('CUDA_VISIBLE_DEVICES', '')
    return env
