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


@pytest.fixture(params=['onedl', 'upstream', 'upstream-newest'])
def stack(tools: SimpleNamespace, request: pytest.FixtureRequest) -> Any:
    return tools.stacks.STACKS[request.param]


# --- when the environment is reused ---------------------------------------------------------------


def test_a_finished_environment_is_reused(tools: SimpleNamespace, stack: Any) -> None:
    assert not stack.is_ready()
    make_ready(stack)
    assert stack.is_ready() and tools.environment.ensure(stack.key) is stack


def test_the_stacks_have_environments_of_their_own(tools: SimpleNamespace) -> None:
    onedl, *others = tools.stacks.STACKS.values()
    make_ready(onedl)
    assert not any(other.is_ready() for other in others)
    assert len({stack.venv for stack in (onedl, *others)}) == 3


@pytest.mark.parametrize('path', ['constraints', 'setup.py', 'pyvenv.cfg'])
def test_a_change_of_what_determines_the_environment_voids_the_stamp(stack: Any, path: str) -> None:
    make_ready(stack)
    folder = stack.constraints.parent.parent
    file = {'constraints': stack.constraints, 'setup.py': folder / 'setup.py',
            'pyvenv.cfg': stack.venv / 'pyvenv.cfg'}[path]
    file.write_text(file.read_text().replace('version = 3.1', 'version = 3.2') + '# changed')
    assert not stack.is_ready()


@pytest.mark.parametrize('change', ['removed', 'other version', 'other family', 'no python'])
def test_an_environment_changed_by_hand_is_not_reused(stack: Any, change: str) -> None:
    make_ready(stack)
    mmcv = next(stack.site_packages().glob('*mmcv-*'))
    if change == 'removed':
        shutil.rmtree(mmcv)
    elif change == 'other version':
        mmcv.rename(mmcv.with_name(mmcv.name.partition('-')[0] + '-2.0.9.dist-info'))
    elif change == 'other family':
        install(stack, {'onedl': 'mmdet', 'upstream': 'onedl-mmdetection'}[stack.family], '3.3.0')
    else:
        stack.python.unlink()
    assert not stack.is_ready()


def test_a_torch_of_another_flavour_in_the_tested_version_is_accepted(stack: Any) -> None:
    make_ready(stack)
    torch = next(stack.site_packages().glob('torch-*'))
    torch.rename(torch.with_name(torch.name.replace('.dist-info', '+cpu.dist-info')))
    assert stack.is_ready()


def test_half_installed_packages_are_installed_again(tools: SimpleNamespace, stack: Any) -> None:
    install(stack, 'whole', '1.0', ('whole.py',))
    broken = install(stack, 'broken', '1.0', ('broken.py', 'lost.py'))
    (stack.site_packages() / 'lost.py').unlink()
    (install(stack, 'started', '1.0') / 'RECORD').unlink()
    (stack.site_packages() / '~orch').mkdir()
    assert sorted(tools.install.forget_damaged(stack)) == ['broken', 'started']
    assert not broken.exists()
    assert [path.name for path in stack.site_packages().glob('*-*')] == ['whole-1.0.dist-info']
    assert not (stack.site_packages() / '~orch').exists()


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
        assert file.read_text().splitlines()[0] == "before = '2.2.0'"
        assert file.read_text().endswith(f" = '{bound}'\n")
    assert tools.install.admit_mmcv(stack) == ''  # done already


# --- refusals -------------------------------------------------------------------------------------


def test_a_machine_without_a_supported_python_is_told_which(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.install, 'version_of', lambda python: '3.13')
    message = error_of(lambda: tools.install.find_python(stack), tools.install.SetupError)
    assert ' or '.join(stack.pythons) in message
    assert f'{stack.command} --python /path/to/python{stack.pythons[0]}' in message
    message = error_of(lambda: tools.install.find_python(stack, 'python3.13'),
                       tools.install.SetupError)
    assert 'python3.13 is not one' in message


def test_upstream_gets_a_python_of_the_machine_that_it_exists_for(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.install, 'version_of', lambda python: python[-4:])
    find = tools.install.find_python
    assert find(tools.stacks.STACKS['upstream']) == 'python3.10'
    assert find(tools.stacks.STACKS['upstream'], 'my-python3.11') == 'my-python3.11'


def test_an_environment_of_an_unsupported_python_is_to_be_removed(
    tools: SimpleNamespace, stack: Any,
) -> None:
    make_ready(stack)
    (stack.venv / 'pyvenv.cfg').write_text('version = 3.13.0\n')
    message = error_of(lambda: tools.environment.ensure(stack.key), tools.install.SetupError)
    assert '3.13' in message and f'rm -rf {stack.folder}' in message


def test_an_environment_with_the_other_family_is_left_alone(
    tools: SimpleNamespace, stack: Any,
) -> None:
    other = {'onedl': 'mmengine', 'upstream': 'onedl-mmengine'}[stack.family]
    install(stack, other, '0.10.7')
    message = error_of(lambda: tools.environment.ensure(stack.key), tools.install.SetupError)
    assert f'({other})' in message and f'mv {stack.folder} ' in message
    assert sorted(path.name for path in stack.venv.iterdir()) == ['lib', 'pyvenv.cfg']


@pytest.mark.parametrize('name', ['doctor', 'environment', 'quickstart', 'selftest',
                                  'bootstrap/__init__', 'bootstrap/probe'])
def test_an_old_python_gets_as_far_as_the_message(name: str) -> None:
    ast.parse((ROOT / 'tools' / f'{name}.py').read_text(), feature_version=(3, 6))


def test_a_small_disk_is_refused_before_torch_is_downloaded(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.install.shutil, 'disk_usage', lambda path: SimpleNamespace(free=3e9))
    setup = fake_setup(tools, stack)
    message = error_of(lambda: tools.install.install_torch(setup), tools.install.SetupError)
    assert '3.0 GB' in message and '12 GB' in message and not setup.commands


@pytest.mark.parametrize('output, words', [
    ("NewConnectionError('... [Errno 111] Connection refused')\n"
     'ERROR: No matching distribution found for torch==2.12.1', ['cannot be reached', 'PIP_CERT']),
    ('ERROR: No matching distribution found for torch==2.12.1', ['has no torch==2.12.1']),
    ('The user requested (constraint) numpy==2.2.6\nERROR: ResolutionImpossible',
     ['has no numpy==2.2.6']),
    ('OSError: [Errno 28] No space left on device', ['disk is full', '12 GB']),
    ('fatal error: Python.h: No such file or directory', ['python3-dev']),
    ('c++: fatal error: Killed signal terminated program cc1plus', ['MAX_JOBS=1']),
    ('something new', ['setup.log']),
])
def test_each_failure_of_pip_says_what_to_do(
    tools: SimpleNamespace, output: str, words: list[str],
) -> None:
    message, tail = tools.install.pip_failure('x\n' * 30 + output).args
    assert all(word in message for word in words)
    assert len(tail.splitlines()) == 12 and '\n' not in message


# --- mmcv -----------------------------------------------------------------------------------------


def mmcv_setup(tools: SimpleNamespace, stack: Any, *answers: tuple[str, int, Any]) -> Any:
    """An environment with torch and without mmcv; ops load unless an answer says otherwise."""
    make_ready(stack)
    shutil.rmtree(next(stack.site_packages().glob('*mmcv-*')))
    return fake_setup(tools, stack, *answers, ('get_compiling_cuda', 0, 'ops: cpu\n'),
                      ('is_available', 0, 'cuda: False'))


def commands_of(setup: Any) -> str:
    return '\n'.join(command for command, _ in setup.commands)


def build_of(setup: Any) -> dict[str, str]:
    return next(variables for text, variables in setup.commands if '--no-binary' in text)


def test_a_wheel_whose_ops_load_is_used(tools: SimpleNamespace, stack: Any) -> None:
    setup = mmcv_setup(tools, stack)
    assert tools.install.install_mmcv(setup) == 'from a wheel, cpu ops'
    commands = commands_of(setup)
    assert f'--no-cache-dir {stack.pinned(stack.mmcv)} --only-binary {stack.mmcv}' in commands
    assert '--no-binary' not in commands


def test_a_wheel_of_another_torch_is_replaced_by_a_build(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops = ['undefined symbol: _ZN2at4_ops', 'ops: cpu\n']
    setup = mmcv_setup(tools, stack, ('get_compiling_cuda', 0, ops))
    monkeypatch.setenv('CFLAGS', '-march=native')
    assert tools.install.install_mmcv(setup) == 'compiled, cpu ops'
    variables = build_of(setup)
    assert variables['CFLAGS'] == '-march=native -g0' and variables['FORCE_CUDA'] == '0'
    assert variables['CUDA_VISIBLE_DEVICES'] == '' and int(variables['MAX_JOBS']) >= 1
    build = next(command for command, _ in setup.commands if '--no-binary' in command)
    assert '--no-cache-dir' in build and '--no-build-isolation' in build


def test_mmcv_that_is_there_stays_and_one_of_another_torch_goes(
    tools: SimpleNamespace, stack: Any,
) -> None:
    ops = ['ops: cpu', 'undefined symbol: _ZN2at4_ops', 'ops: cpu']
    setup = mmcv_setup(tools, stack, ('get_compiling_cuda', 0, ops))
    install(stack, stack.mmcv, stack.pins()[stack.mmcv])
    assert tools.install.install_mmcv(setup) == 'already there, cpu ops'
    assert ' install ' not in commands_of(setup)
    assert tools.install.install_mmcv(setup) == 'from a wheel, cpu ops'
    assert f'uninstall -y {stack.mmcv}' in commands_of(setup)


def test_a_build_without_a_compiler_says_what_to_install(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.stacks, 'compiler', lambda: None)
    no_wheel = ('--only-binary', 1, 'No matching distribution found for mmcv')
    message = error_of(lambda: tools.install.install_mmcv(mmcv_setup(tools, stack, no_wheel)),
                       tools.install.SetupError)
    assert 'sudo apt-get install -y g++ python3-dev' in message


def test_a_lost_network_is_not_taken_for_a_missing_wheel(
    tools: SimpleNamespace, stack: Any,
) -> None:
    setup = mmcv_setup(
        tools, stack, ('--only-binary', 1, 'Temporary failure in name resolution'))
    message = error_of(lambda: tools.install.install_mmcv(setup), tools.install.SetupError)
    assert 'cannot be reached' in message and '--no-binary' not in commands_of(setup)


@pytest.mark.parametrize('nvcc, wheel, expected', [
    ('release 13.0, V13.0.88', 'cpu', 'compiled, cuda ops'),
    ('release 13.0, V13.0.88', 'cuda', 'from a wheel, cuda ops'),
    ('release 12.4, V12.4.1', 'cpu', 'from a wheel, cpu ops'),
])
def test_the_ops_are_for_cuda_where_gpu_and_nvcc_agree(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, nvcc: str, wheel: str, expected: str,
    capsys: pytest.CaptureFixture,
) -> None:
    stack = tools.stacks.STACKS['onedl']
    monkeypatch.setattr(tools.stacks, 'nvcc', lambda: '/usr/bin/nvcc')
    setup = mmcv_setup(tools, stack, ('is_available', 0, 'cuda: 13.0'), ('--version', 0, nvcc),
                       ('get_compiling_cuda', 0, [f'ops: {wheel}', 'ops: cuda']))
    assert tools.install.install_mmcv(setup) == expected
    if 'compiled' in expected:
        assert build_of(setup)['FORCE_CUDA'] == '1'
        assert 'CUDA_VISIBLE_DEVICES' not in build_of(setup)
    assert ('no nvcc of CUDA 13' in capsys.readouterr().out) == (' cpu ' in expected)


def test_a_gpu_is_hidden_where_mmcv_has_cpu_ops_only(
    stack: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('PYTHONPATH', '/elsewhere')
    make_ready(stack)
    (stack.venv / 'mmcv-ops').write_text('cpu')
    assert stack.variables()['CUDA_VISIBLE_DEVICES'] == '' and 'PYTHONPATH' not in stack.variables()
    (stack.venv / 'mmcv-ops').write_text('cuda')
    assert 'CUDA_VISIBLE_DEVICES' not in stack.variables()


def test_opencv_without_libgl_is_replaced_by_its_headless_variant(
    tools: SimpleNamespace, stack: Any,
) -> None:
    libgl = 'ImportError: libGL.so.1: cannot open shared object file'
    setup = fake_setup(tools, stack, ('import cv2', 1, libgl))
    message = error_of(lambda: tools.install.use_opencv_that_loads(setup),
                       tools.install.SetupError)
    assert '--force-reinstall --no-deps opencv-python-headless' in commands_of(setup)
    assert 'libGL.so.1' in message and 'apt-get install -y libgl1' in message


# --- interruptions and locks, in real processes ---------------------------------------------------


SLOW = '''
import sys
sys.path.insert(0, 'tools')
import environment
from bootstrap.stacks import Stack
CHILD = """
import pathlib, time
pathlib.Path('started').touch()
while not pathlib.Path('release').exists():
    time.sleep(0.02)
"""
def slow(setup, python):
    print('step', flush=True)
    setup.run(sys.executable, '-c', CHILD)
environment.run_steps = slow
environment.install.find_python = lambda *args: sys.executable
Stack.is_ready = lambda self: (self.venv / 'setup.stamp').exists()
sys.exit(environment.guarded(lambda: environment.ensure() and 0))
'''


def start_slow(root: Path) -> 'subprocess.Popen[str]':
    """A set-up whose only step lasts until the file `release` is there."""
    # A test run in the background ignores Ctrl-C; what it starts would too.
    return subprocess.Popen([sys.executable, '-u', '-c', SLOW], cwd=root, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: 'subprocess.Popen[str]') -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.training
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_children_leaves_no_stamp_and_says_how_to_go_on(
    tools: SimpleNamespace, number: int,
) -> None:
    process = start_slow(tools.root)
    wait_for(tools.root / 'started')
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
    first = start_slow(tools.root)
    wait_for(tools.root / 'started')
    if killed:
        first.kill()
        end(first)
    second = start_slow(tools.root)
    assert 'Another set-up is at work' in second.stdout.readline()
    (tools.root / 'release').touch()
    assert killed or end(first)[0] == 0
    status, output, _ = end(second)
    assert status == 0 and ('step' in output) == killed
