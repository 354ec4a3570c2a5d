"""A copied checkout in which the set-up's modules can be tried, and fakes of what they run."""
import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = 'tools/constraints-onedl.txt'
PARTS = ('bootstrap', 'bootstrap.stack', 'bootstrap.project_env', 'bootstrap.children',
         'bootstrap.steps', 'doctor', 'environment', 'quickstart', 'selftest')
ONEDL = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation',
         'onedl-mmpretrain', 'torch', 'torchvision')


def load_tools(root: Path) -> SimpleNamespace:
    """Copies tools/ to a folder; its modules by their last name, and the folder as `root`."""
    shutil.copytree(ROOT / 'tools', root / 'tools', ignore=shutil.ignore_patterns('__pycache__'))
    saved = {name: sys.modules.pop(name) for name in PARTS if name in sys.modules}
    sys.path.insert(0, str(root / 'tools'))
    modules = {name.split('.')[-1]: importlib.import_module(name) for name in PARTS}
    sys.path.remove(str(root / 'tools'))
    for name in PARTS:
        del sys.modules[name]
    sys.modules.update(saved)
    return SimpleNamespace(root=root, **modules)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The modules of one copied checkout."""
    return load_tools(tmp_path_factory.mktemp('checkout'))


@pytest.fixture
def tools(checkout: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The copied checkout without an environment, its files as in the real one."""
    for path in (CONSTRAINTS, 'setup.py'):
        shutil.copy(ROOT / path, checkout.root / path)
    yield checkout
    shutil.rmtree(checkout.root / '.venv', ignore_errors=True)
    for name in ('started', 'release'):
        (checkout.root / name).unlink(missing_ok=True)


def site_of(root: Path) -> Path:
    site = root / '.venv' / 'lib' / 'python3.11' / 'site-packages'
    site.mkdir(parents=True, exist_ok=True)
    config = root / '.venv' / 'pyvenv.cfg'
    if not config.exists():
        config.write_text('version = 3.11.7\n')
    return site


def install(root: Path, name: str, version: str, files: Tuple[str, ...] = ()) -> Path:
    """A distribution as pip leaves it."""
    site = site_of(root)
    info = site / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    for file in files:
        (site / file).write_text('')
    (info / 'RECORD').write_text(''.join(f'{file},sha256=0,1\n' for file in files))
    return info


def make_ready(tools: SimpleNamespace) -> None:
    """A .venv that a finished set-up would have left."""
    for name in ONEDL:
        install(tools.root, name, tools.stack.pins()[name])
    (tools.root / '.venv' / 'bin').mkdir()
    (tools.root / '.venv' / 'bin' / 'python').write_text('')
    tools.project_env.STAMP.write_text(tools.project_env.fingerprint())


class FakeRunner:
    """Answers commands from a table of (part of the command, status, output), and notes them."""

    def __init__(self, tools: SimpleNamespace, *answers: Tuple[str, int, str]) -> None:
        self.real = tools.children.Runner(None)
        self.real.run = self.run
        self.answers = answers
        self.commands: List[str] = []
        self.variables: List[Dict[str, str]] = []

    def run(self, command: List[str], env: Any = None) -> Tuple[int, str]:
        text = ' '.join(command)
        self.commands.append(text)
        self.variables.append(env or {})
        for part, status, output in self.answers:
            if part in text:
                return status, output
        return 0, ''

    def ran(self, part: str) -> bool:
        return any(part in command for command in self.commands)


def error_of(action: Callable[[], Any], error: type) -> str:
    with pytest.raises(error) as caught:
        action()
    return str(caught.value)
