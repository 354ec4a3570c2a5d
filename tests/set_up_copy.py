"""A copied checkout in which the modules of the set-up can be tried."""
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ('bootstrap', 'bootstrap.stacks', 'bootstrap.facts', 'bootstrap.remedies',
         'bootstrap.install', 'doctor', 'environment', 'quickstart', 'selftest')


def load_tools(root: Path) -> SimpleNamespace:
    """Copy tools/ to a folder; return its modules by their last name, and the folder as `root`."""
    shutil.copytree(ROOT / 'tools', root / 'tools', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'setup.py', root)
    saved = {name: sys.modules.pop(name) for name in PARTS if name in sys.modules}
    sys.path.insert(0, str(root / 'tools'))
    modules = {name.split('.')[-1]: importlib.import_module(name) for name in PARTS}
    sys.path.remove(str(root / 'tools'))
    for name in PARTS:
        del sys.modules[name]
    sys.modules.update(saved)
    return SimpleNamespace(root=root, **modules)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of a copied checkout without an environment."""
    for name in ('PYTHONPATH', 'CUDA_VISIBLE_DEVICES'):
        monkeypatch.delenv(name, raising=False)
    return load_tools(tmp_path / 'checkout')


def add_distribution(stack: Any, name: str, version: str, *files: str) -> Path:
    """Leave what pip leaves of an installed distribution; return its folder."""
    stack.venv.mkdir(exist_ok=True)
    (stack.venv / 'pyvenv.cfg').write_text(f'version = {stack.pythons[0]}.7\n')
    info = stack.site_packages() / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir(parents=True)
    for file in files:
        (info.parent / file).write_text('')
    (info / 'RECORD').write_text(''.join(f'{file},sha256=0,1\n' for file in files))
    return info


def make_ready(stack: Any) -> None:
    """Leave what a finished set-up leaves."""
    for name in (*stack.packages.values(), 'torch', 'torchvision'):
        add_distribution(stack, name, stack.pins[name])
    stack.python.parent.mkdir()
    stack.python.write_text('')
    stack.stamp.write_text(stack.fingerprint())
