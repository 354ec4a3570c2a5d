"""When an environment is reused, what the set-up refuses and says, how it is interrupted.

Without network or pip, in a copy of the checkout: the real environments stay untouched.
"""
import ast
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from set_up_copy import ROOT, error_of, fake_setup, install, make_ready, tools

__all__ = ['tools']  # a fixture
CPU, CUDA = {'cuda': 'not available'}, {'cuda': '13.0'}
SYMBOL = {'error': 'ImportError: undefined symbol: _ZN2at4_ops'}


@pytest.fixture(params=['onedl', 'upstream', 'upstream-newest'])
def stack(tools: SimpleNamespace, request: pytest.FixtureRequest) -> Any:
    return tools.stacks.STACKS[request.param]


def write_program(path: Path, text: str) -> Path:
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return path


# --- when the environment is reused ---------------------------------------------------------------


def test_a_finished_environment_is_reused_and_the_other_stacks_have_their_own(
    tools: SimpleNamespace, stack: Any,
) -> None:
    assert not stack.is_ready()
    make_ready(stack)
    assert tools.environment.ensure(stack.key) is stack
    assert [one for one in tools.stacks.STACKS.values() if one.is_ready()] == [stack]


@pytest.mark.parametrize('change', ['constraints', 'setup.py', 'other Python', 'no Python',
                                    'removed', 'other version', 'other family', 'flavour'])
def test_a_changed_environment_is_reused_only_where_the_flavour_of_torch_differs(
    tools: SimpleNamespace, stack: Any, change: str,
) -> None:
    make_ready(stack)
    mmcv = next(stack.site_packages().glob('*mmcv-*'))
    if change in ('constraints', 'setup.py'):
        file = stack.constraints if change == 'constraints' else tools.root / 'setup.py'
        file.write_text(file.read_text() + '# changed')
    elif change == 'other Python':
        (stack.venv / 'pyvenv.cfg').write_text('version = 3.12.1')
    elif change == 'no Python':
        stack.python.unlink()
    elif change == 'removed':
        shutil.rmtree(mmcv)
    elif change == 'other version':
        mmcv.rename(mmcv.with_name(mmcv.name.partition('-')[0] + '-2.0.9.dist-info'))
    elif change == 'other family':
        install(stack, {'onedl': 'mmdet', 'upstream': 'onedl-mmdetection'}[stack.family], '3.3.0')
    else:
        torch = next(stack.site_packages().glob('torch-*'))
        torch.rename(torch.with_name(torch.name.replace('.dist-info', '+cpu.dist-info')))
    assert stack.is_ready() == (change == 'flavour')


def test_half_installed_packages_are_installed_again(tools: SimpleNamespace, stack: Any) -> None:
    install(stack, 'whole', '1.0', ('whole.py',))
    install(stack, 'broken', '1.0', ('broken.py', 'lost.py'))
    (stack.site_packages() / 'lost.py').unlink()
    (install(stack, 'started', '1.0') / 'RECORD').unlink()
    (stack.site_packages() / '~orch').mkdir()
    assert sorted(tools.install.forget_damaged(stack)) == ['broken', 'started']
    assert sorted(path.name for path in stack.site_packages().iterdir()) == [
        'broken.py', 'whole-1.0.dist-info', 'whole.py']


@pytest.mark.parametrize('key, accepted', [('upstream', False), ('upstream-newest', True)])
def test_mmdet_and_mmseg_are_edited_where_they_would_refuse_the_mmcv_of_the_stack(
    tools: SimpleNamespace, key: str, accepted: bool,
) -> None:
    stack = tools.stacks.STACKS[key]
    install(stack, 'mmdet', '3.3.0')
    files = []
    for package, name in (('mmdet', 'mmcv_maximum_version'), ('mmseg', 'MMCV_MAX')):
        files.append(stack.site_packages() / package / '__init__.py')
        files[-1].parent.mkdir()
        files[-1].write_text(f"before = '2.2.0'\n{name} = '2.2.0'\n")
    remark = 'mmdet and mmseg made to accept mmcv 2.2.0' if accepted else ''
    assert tools.install.admit_mmcv(stack) == remark
    for file in files:
        bound = '2.2.0.1' if accepted else '2.2.0'
        assert file.read_text().startswith("before = '2.2.0'\n")
        assert file.read_text().endswith(f" = '{bound}'\n")
    assert tools.install.admit_mmcv(stack) == ''  # done already


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize('given', [None, 'my-python'])
def test_a_python_that_the_stack_exists_for_is_found_or_asked_for(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch, given: str | None,
) -> None:
    """Every command is a Python whose version is in its name; `my-python` fits each stack."""
    def run(command: list[str], **options: Any) -> Any:
        fits = any(version in command[0] for version in (*existing, 'my-python'))
        return SimpleNamespace(returncode=int(not fits))

    monkeypatch.setattr(tools.install.subprocess, 'run', run)
    existing = stack.pythons[-1:]
    assert (given or existing[0]) in tools.install.find_python(stack, given)
    existing, wrong = (), 'python3.13' if given else None
    message = error_of(lambda: tools.install.find_python(stack, wrong), tools.install.SetupError)
    assert ' or '.join(stack.pythons) in message
    assert f'{stack.command} --python /path/to/python{stack.pythons[0]}' in message
    assert (f'{wrong} is not one' if wrong else 'none was found') in message


@pytest.mark.parametrize('reason', ['Python', 'family', 'disk'])
def test_what_cannot_be_completed_is_refused_and_left_alone(
    tools: SimpleNamespace, stack: Any, reason: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = {'onedl': 'mmengine', 'upstream': 'onedl-mmengine'}[stack.family]
    free = SimpleNamespace(free=3e9 if reason == 'disk' else 90e9)
    monkeypatch.setattr(tools.install.shutil, 'disk_usage', lambda path: free)
    install(stack, other if reason == 'family' else 'einops', '0.10.7')
    if reason == 'Python':
        (stack.venv / 'pyvenv.cfg').write_text('version = 3.13.0\n')
    words = {'Python': ('3.13', f'rm -rf {stack.folder}'), 'disk': ('3.0 GB', '12 GB'),
             'family': (f'({other})', f'mv {stack.folder} ')}[reason]
    message = error_of(lambda: tools.environment.ensure(stack.key), tools.install.SetupError)
    assert all(word in message for word in words)
    assert sorted(path.name for path in stack.venv.iterdir()) == ['lib', 'pyvenv.cfg']


@pytest.mark.parametrize('name', ['doctor', 'environment', 'quickstart', 'selftest',
                                  'bootstrap/__init__', 'bootstrap/probe'])
def test_an_old_python_gets_as_far_as_the_message(name: str) -> None:
    ast.parse((ROOT / 'tools' / f'{name}.py').read_text(), feature_version=(3, 6))


@pytest.mark.parametrize('output, words', [
    ("connection broken by 'NewConnectionError('... [Errno 111] Connection refused')\n"
     'ERROR: No matching distribution found for torch==2.12.1', 'cannot be reached'),
    ('ERROR: No matching distribution found for torch==2.12.1', 'lacks a package'),
    ('The user requested (constraint) numpy==2.2.6\nERROR: ResolutionImpossible', 'lacks a package'),
    ('OSError: [Errno 28] No space left on device', 'disk is full: about 12 GB'),
    ('Building wheel for mmcv\nfatal error: Python.h: No such file or directory', 'python3-dev'),
    ('Building wheel for mmcv\nsh: c++: not found', 'sudo apt-get install -y g++ python3-dev'),
    ('c++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
    ('something new', 'its message is above'),
])
def test_each_failure_of_pip_says_what_to_do(
    tools: SimpleNamespace, output: str, words: str, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.stacks, 'compiler', lambda: None)
    stack = tools.stacks.STACKS['onedl']
    make_ready(stack)
    write_program(stack.python, f"cat >> {stack.venv}/setup.log <<'END'\n{output}\nEND\nexit 1")
    message = error_of(lambda: tools.install.Setup(stack).pip('install', 'torch'),
                       tools.install.SetupError)
    assert words in message and 'same command again' in message and 'setup.log' in message


# --- mmcv, opencv ---------------------------------------------------------------------------------


@pytest.mark.parametrize('present, ops, remark', [
    (True, [CPU], 'already there, cpu ops'),
    (False, [CPU], 'installed, cpu ops'),
    (True, [SYMBOL, CPU], 'installed, cpu ops'),
    (False, [SYMBOL, CPU], 'compiled, cpu ops'),
    (True, [SYMBOL, SYMBOL, SYMBOL], 'error: undefined symbol'),
])
def test_mmcv_is_kept_installed_or_compiled_until_its_ops_load(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch, present: bool,
    ops: list[dict[str, str]], remark: str,
) -> None:
    monkeypatch.setenv('CFLAGS', '-march=native')
    make_ready(stack)
    if not present:
        shutil.rmtree(next(stack.site_packages().glob('*mmcv-*')))
    setup = fake_setup(tools, stack, *ops)
    if remark.startswith('error: '):
        message = error_of(lambda: tools.install.install_mmcv(setup), tools.install.SetupError)
        assert remark[7:] in message and 'doctor.py --python' in message
    else:
        assert tools.install.install_mmcv(setup) == remark
    runs = [(text, variables) for text, variables in setup.commands if ' install ' in text]
    assert len(runs) == len(ops) - present
    for number, (text, variables) in enumerate(runs):
        assert f'--no-cache-dir --no-build-isolation {stack.pinned(stack.mmcv)}' in text
        assert (f'--no-binary {stack.mmcv}' in text) == bool(number)
        assert variables['CFLAGS'] == '-march=native -g0' and variables['FORCE_CUDA'] == '0'
        assert variables['CUDA_VISIBLE_DEVICES'] == '' and int(variables['MAX_JOBS']) >= 1
    assert sum(f'uninstall -y {stack.mmcv}' in text for text, _ in setup.commands) == (
        len(runs) if present else 0)


@pytest.mark.parametrize('nvcc, ops, expected', [
    ('13.0', [CPU, CUDA], 'installed, cuda ops'),
    ('13.0', [CPU, CPU, CUDA], 'compiled, cuda ops'),
    ('12.4', [CPU], 'already there, cpu ops'),
])
def test_the_ops_are_for_cuda_where_gpu_and_nvcc_agree(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch, nvcc: str,
    ops: list[dict[str, str]], expected: str, capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(tools.stacks, 'nvcc', lambda: str(write_program(
        tools.root / 'nvcc', f'echo "Cuda compilation tools, release {nvcc}, V{nvcc}.88"')))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    make_ready(stack)
    (stack.venv / 'mmcv-ops').write_text('cpu')  # hides the GPU, not from a repair
    setup = fake_setup(tools, stack, *ops, gpu='NVIDIA H100')
    assert tools.install.install_mmcv(setup) == expected
    assert all(variables['FORCE_CUDA'] == '1' and 'CUDA_VISIBLE_DEVICES' not in variables
               for text, variables in setup.commands if ' install ' in text)
    assert ('no nvcc of CUDA 13' in capsys.readouterr().out) == (' cpu ' in expected)
    hidden = stack.variables().get('CUDA_VISIBLE_DEVICES')
    assert hidden == ('' if ' cpu ' in expected else None)


def test_opencv_without_libgl_is_replaced_by_its_headless_variant(
    tools: SimpleNamespace, stack: Any,
) -> None:
    setup = fake_setup(tools, stack, cv2='ImportError: libGL.so.1: cannot open shared object file')
    tools.install.use_opencv_that_loads(setup)
    assert '--force-reinstall --no-deps opencv-python-headless' in setup.commands[0][0]
    setup = fake_setup(tools, stack)
    tools.install.use_opencv_that_loads(setup)
    assert not setup.commands


# --- interruptions and locks, in real processes ---------------------------------------------------


SLOW = '''
import sys
sys.path.insert(0, 'tools')
import environment
from bootstrap.stacks import Stack
def slow(setup, python):
    print('step', flush=True)
    setup.run('sh', '-c', 'touch started; until [ -e release ]; do sleep 0.02; done')
environment.run_steps = slow
environment.install.find_python = lambda *args: sys.executable
Stack.is_ready = lambda self: (self.venv / 'setup.stamp').exists()
sys.exit(environment.guarded(lambda: environment.ensure() and 0))
'''


def start_slow(root: Path, *, wait: bool = False) -> 'subprocess.Popen[str]':
    """A set-up whose only step lasts until the file `release` is there; waits for that step."""
    # A test run in the background ignores Ctrl-C; what it starts would too.
    process = subprocess.Popen([sys.executable, '-u', '-c', SLOW], cwd=root, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while wait and not (root / 'started').exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def end(process: 'subprocess.Popen[str]') -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.training
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_children_leaves_no_stamp_and_says_how_to_go_on(
    tools: SimpleNamespace, number: int,
) -> None:
    process = start_slow(tools.root, wait=True)
    process.send_signal(number)
    status, _, errors = end(process)
    assert status == 130 and 'continues from here' in errors and 'Traceback' not in errors
    assert not (tools.root / '.venv' / 'setup.stamp').exists()
    (tools.root / 'release').touch()
    status, output, _ = end(start_slow(tools.root))
    assert status == 0 and 'step' in output and 'Another set-up' not in output
    assert 'step' not in end(start_slow(tools.root))[1]


@pytest.mark.training
@pytest.mark.parametrize('killed', [False, True])
def test_a_second_set_up_waits_for_the_first_and_its_children(
    tools: SimpleNamespace, killed: bool,
) -> None:
    first = start_slow(tools.root, wait=True)
    if killed:
        first.kill()
        first.wait()
    second = start_slow(tools.root)
    assert 'Another set-up is at work' in second.stdout.readline()
    (tools.root / 'release').touch()
    assert killed or end(first)[0] == 0
    status, output, _ = end(second)
    assert status == 0 and ('step' in output) == killed
