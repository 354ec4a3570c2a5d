"""A copied checkout in which the modules of the set-up can be tried, and a fake of what they run."""
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ('bootstrap', 'bootstrap.stacks', 'bootstrap.facts', 'bootstrap.remedies',
         'bootstrap.install', 'doctor', 'environment', 'quickstart', 'selftest')
VERSIONS = {'onedl': '3.11.7', 'upstream': '3.10.13', 'upstream-newest': '3.11.7'}


def load_tools(root: Path) -> SimpleNamespace:
    """Copies tools/ to a folder; its modules by their last name, and the folder as `root`."""
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
    monkeypatch.delenv('PYTHONPATH', raising=False)
    return load_tools(tmp_path / 'checkout')


def install(stack: Any, name: str, version: str, files: tuple[str, ...] = ()) -> Path:
    """A distribution as pip leaves it."""
    stack.venv.mkdir(exist_ok=True)
    (stack.venv / 'pyvenv.cfg').write_text(f'version = {VERSIONS[stack.key]}\n')
    info = stack.site_packages() / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir(parents=True)
    for file in files:
        (info.parent / file).write_text('')
    (info / 'RECORD').write_text(''.join(f'{file},sha256=0,1\n' for file in files))
    return info


def make_ready(stack: Any) -> None:
    """An environment that a finished set-up would have left."""
    for name in (*stack.packages.values(), 'torch', 'torchvision'):
        install(stack, name, stack.pins[name])
    stack.python.parent.mkdir()
    stack.python.write_text('')
    (stack.venv / 'setup.stamp').write_text(stack.fingerprint())


def fake_setup(tools: SimpleNamespace, stack: Any, *ops: dict[str, str], gpu: str | None = None,
               cv2: str | None = None) -> Any:
    """A set-up that runs nothing; `commands` holds (command, variables) of what it would have run.

    Args:
        ops: what the imports of mmcv.ops find, one after the other.
        gpu: name of the GPU that a torch for CUDA 13.0 sees.
        cv2: the error of importing it.
    """
    setup, left = tools.install.Setup(stack), iter(ops)
    setup.commands = []

    def run(*command: str, **variables: str) -> int:
        setup.commands.append((' '.join(command), variables))
        return 0

    def probe(*names: str, **variables: str) -> Any:
        seen = None if 'CUDA_VISIBLE_DEVICES' in stack.variables() else gpu
        records = {'torch': {'gpu': seen, 'cuda': '13.0'}, 'cv2': {'error': cv2} if cv2 else {}}
        if 'mmcv.ops' in names:
            records['mmcv.ops'] = next(left)
        return tools.facts.Facts('python', (3, 11, 7), {}, records)

    setup.run, setup.probe = run, probe
    return setup


def error_of(action: Callable[[], Any], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        action()
    return str(caught.value.args[0])
