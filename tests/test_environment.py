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
from set_up_copy import ROOT, add_distribution, make_ready, tools

__all__ = ['tools']  # a fixture
OTHER_FAMILY = {'onedl': 'mmdet', 'upstream': 'onedl-mmdetection'}
CPU, CUDA = {'cuda': 'not available'}, {'cuda': '13.0'}
SYMBOL = {'error': 'ImportError: undefined symbol: _ZN2at4_ops'}


@pytest.fixture(params=['onedl', 'upstream', 'upstream-newest'])
def stack(tools: SimpleNamespace, request: pytest.FixtureRequest) -> Any:
    return tools.stacks.STACKS[request.param]


# --- when the environment is reused ---------------------------------------------------------------


def test_a_finished_environment_is_reused_and_the_other_stacks_have_their_own(
    tools: SimpleNamespace, stack: Any,
) -> None:
    assert not stack.is_ready()
    make_ready(stack)
    assert tools.environment.ensure(stack.key) is stack
    assert [one for one in tools.stacks.STACKS.values() if one.is_ready()] == [stack]
    torch = next(stack.site_packages().glob('torch-*'))
    torch.rename(torch.with_name(torch.name.replace('.dist-info', '+cpu.dist-info')))
    assert stack.is_ready()


@pytest.mark.parametrize('change', [
    lambda stack, mmcv: stack.constraints.write_text(stack.constraints.read_text() + '# changed'),
    lambda stack, mmcv: (stack.venv / 'pyvenv.cfg').write_text('version = 3.12.1'),
    lambda stack, mmcv: stack.python.unlink(),
    lambda stack, mmcv: shutil.rmtree(mmcv),
    lambda stack, mmcv: mmcv.rename(mmcv.with_name(f'{mmcv.name.split("-")[0]}-2.0.9.dist-info')),
    lambda stack, mmcv: add_distribution(stack, OTHER_FAMILY[stack.family], '3.3.0'),
], ids=['constraints', 'other Python', 'no Python', 'removed', 'other version', 'other family'])
def test_a_changed_environment_is_not_reused(stack: Any, change: Any) -> None:
    make_ready(stack)
    change(stack, next(stack.site_packages().glob('*mmcv-*')))
    assert not stack.is_ready()


def test_half_installed_packages_are_installed_again(tools: SimpleNamespace, stack: Any) -> None:
    add_distribution(stack, 'whole', '1.0', 'whole.py')
    add_distribution(stack, 'broken', '1.0', 'broken.py', 'lost.py')
    (stack.site_packages() / 'lost.py').unlink()
    (add_distribution(stack, 'started', '1.0') / 'RECORD').unlink()
    (stack.site_packages() / '~orch').mkdir()
    assert sorted(tools.install.forget_damaged(stack)) == ['broken', 'started']
    assert sorted(path.name for path in stack.site_packages().iterdir()) == [
        'broken.py', 'whole-1.0.dist-info', 'whole.py']


def test_mmdet_and_mmseg_are_made_to_accept_the_newest_mmcv(tools: SimpleNamespace) -> None:
    stack = tools.stacks.STACKS['upstream-newest']
    files = [stack.site_packages() / package / '__init__.py' for package in ('mmdet', 'mmseg')]
    for file, name in zip(files, ('mmcv_maximum_version', 'MMCV_MAX')):
        file.parent.mkdir(parents=True)
        file.write_text(f"before = '2.2.0'\n{name} = '2.2.0'\n")
    for _ in range(2):  # the second time it is done already
        tools.install.admit_mmcv(stack)
        for file in files:
            before, bound, end = file.read_text().split('\n')
            assert before == "before = '2.2.0'" and bound.endswith(" = '2.2.0.1'") and not end


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize('given', [None, 'my-python'])
def test_a_python_that_the_stack_exists_for_is_found_or_asked_for(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch, given: str | None,
) -> None:
    def run(command: list[str], **options: Any) -> Any:
        return SimpleNamespace(returncode=int(existing not in command[0]))

    monkeypatch.setattr(tools.install.subprocess, 'run', run)
    existing = given or stack.pythons[-1]
    assert existing in tools.install.find_python(stack, given)
    existing = 'none'
    with pytest.raises(tools.install.SetupError) as caught:
        tools.install.find_python(stack, given)
    assert ' or '.join(stack.pythons) in str(caught.value)
    assert f'{stack.command} --python /path/to/python{stack.pythons[0]}' in str(caught.value)
    assert (f'{given} is not one' if given else 'none was found') in str(caught.value)


@pytest.mark.parametrize('reason, words', [
    ('Python', '3.13.*rm -rf {folder}`'), ('family', r'\({other}\).*mv {folder} '),
    ('disk', '3.0 GB.*12 GB')])
def test_what_cannot_be_completed_is_refused_and_left_alone(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch, reason: str, words: str,
) -> None:
    free = SimpleNamespace(free=3e9 if reason == 'disk' else 90e9)
    monkeypatch.setattr(tools.install.shutil, 'disk_usage', lambda path: free)
    other = OTHER_FAMILY[stack.family]
    add_distribution(stack, other if reason == 'family' else 'einops', '0.10.7')
    if reason == 'Python':
        (stack.venv / 'pyvenv.cfg').write_text('version = 3.13.0\n')
    with pytest.raises(tools.install.SetupError, match=words.format(folder=stack.folder, other=other)):
        tools.environment.ensure(stack.key)
    assert sorted(path.name for path in stack.venv.iterdir()) == ['lib', 'pyvenv.cfg']


@pytest.mark.parametrize('name', ['doctor', 'environment', 'quickstart', 'selftest',
                                  'bootstrap/__init__', 'bootstrap/probe'])
def test_an_old_python_gets_as_far_as_the_message(name: str) -> None:
    ast.parse((ROOT / 'tools' / f'{name}.py').read_text(), feature_version=(3, 6))


@pytest.mark.parametrize('output, words', [
    ("connection broken by 'NewConnectionError('... [Errno 111] Connection refused')\n"
     'ERROR: No matching distribution found for torch==2.12.1', 'cannot be reached'),
    ('ERROR: No matching distribution found for torch==2.12.1', 'lacks a package'),
    ('OSError: [Errno 28] No space left on device', 'disk is full: about 12 GB'),
    ('Building wheel for mmcv\nsh: c++: not found', 'sudo apt-get install -y g\\+\\+ python3-dev'),
    ('Building wheel for mmcv\nc++: fatal error: Killed signal terminated program', 'MAX_JOBS=1'),
    ('something new', 'its message is above'),
])
def test_a_failure_of_pip_says_what_to_do(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, output: str, words: str,
) -> None:
    monkeypatch.setattr(tools.remedies, 'has_compiler', lambda: False)
    stack = tools.stacks.STACKS['onedl']
    make_ready(stack)
    stack.log.write_text('No space left on device: of an earlier call\n')
    stack.python.write_text(f"#!/bin/sh\ncat >> {stack.log} <<'END'\n{output}\nEND\nexit 1\n")
    stack.python.chmod(0o755)
    with pytest.raises(tools.install.SetupError, match=f'{words}.*same command again.*setup.log'):
        tools.install.pip(stack, 'install', 'torch')


# --- mmcv, opencv ---------------------------------------------------------------------------------


def fake(tools: SimpleNamespace, **found: Any) -> list[tuple[str, dict[str, str]]]:
    """Let the set-up run nothing; return the list that (command, variables) will be added to.

    Args:
        found: what the imports of torch, cv2 and mmcv.ops find; of the last one after the other.
    """
    commands, left = [], iter(found.pop('ops', ()))

    def run(stack: Any, *command: str, **variables: str) -> int:
        commands.append((' '.join(command), variables))
        return 0

    def probe(stack: Any, name: str, **variables: str) -> dict[str, Any]:
        seen = {} if 'CUDA_VISIBLE_DEVICES' in stack.variables() else found
        return next(left) if name == 'mmcv.ops' else seen.get(name, {})

    tools.install.run, tools.install.probe = run, probe
    return commands


@pytest.mark.parametrize('present, nvcc, ops, expected', [
    (True, '', [CPU], 'already there, cpu ops'),
    (False, '', [CPU], 'installed, cpu ops'),
    (True, '', [SYMBOL, CPU], 'installed, cpu ops'),
    (False, '', [SYMBOL, CPU], 'compiled, cpu ops'),
    (True, '', [SYMBOL, SYMBOL, SYMBOL], 'undefined symbol.*doctor.py --python'),
    (True, '13.0', [CPU, CUDA], 'installed, cuda ops'),
    (True, '13.0', [CPU, CPU, CUDA], 'compiled, cuda ops'),
    (True, '12.4', [CPU], 'already there, cpu ops'),
])
def test_mmcv_is_kept_installed_or_compiled_until_its_ops_load(
    tools: SimpleNamespace, stack: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture, present: bool, nvcc: str, ops: list[dict[str, str]],
    expected: str,
) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('CFLAGS', '-march=native')
    make_ready(stack)
    stack.ops.write_text('cpu')  # hides the GPU, not from a repair
    if not present:
        shutil.rmtree(next(stack.site_packages().glob('*mmcv-*')))
    gpu = {'gpu': 'NVIDIA H100', 'cuda': '13.0', 'nvcc': nvcc} if nvcc else {}
    commands = fake(tools, torch=gpu, ops=ops)
    if ops[-1] is SYMBOL:
        with pytest.raises(tools.install.SetupError, match=expected):
            tools.install.install_mmcv(stack)
    else:
        assert tools.install.install_mmcv(stack) == expected
        assert ('CUDA_VISIBLE_DEVICES' in stack.variables()) == (ops[-1] is CPU)
    assert ('no nvcc of CUDA 13' in capsys.readouterr().out) == (nvcc == '12.4')
    runs = [(text, variables) for text, variables in commands if ' install ' in text]
    assert len(runs) == len(ops) - present
    for number, (text, variables) in enumerate(runs):
        assert f'--no-cache-dir --no-build-isolation {stack.pinned(stack.mmcv)[0]}' in text
        assert (f'--no-binary {stack.mmcv}' in text) == bool(number)
        assert variables['CFLAGS'] == '-march=native -g0' and int(variables['MAX_JOBS']) >= 1
        assert variables['FORCE_CUDA'] == str(int(nvcc == '13.0'))
        assert variables.get('CUDA_VISIBLE_DEVICES') == (None if nvcc == '13.0' else '')
    assert sum('uninstall -y' in text for text, _ in commands) == len(runs) * present


def test_opencv_without_libgl_is_replaced_by_its_headless_variant(
    tools: SimpleNamespace, stack: Any,
) -> None:
    for record, count in (({}, 0), ({'error': 'libGL.so.1: cannot open shared object file'}, 1)):
        commands = fake(tools, cv2=record)
        tools.install.use_opencv_that_loads(stack)
        assert len(commands) == count
    assert '--force-reinstall --no-deps opencv-python-headless' in commands[0][0]


# --- interruptions and locks, in real processes ---------------------------------------------------


SLOW = '''
import sys
sys.path.insert(0, 'tools')
import environment
from bootstrap.stacks import Stack
def slow(stack, python):
    print('step', flush=True)
    loop = 'echo $$ > started; until [ -e release ]; do sleep 0.02; done'
    environment.install.run(stack, 'sh', '-c', loop)
environment.run_steps = slow
environment.install.find_python = lambda *args: sys.executable
Stack.is_ready = lambda self: self.stamp.exists()
sys.exit(environment.run_guarded(lambda: environment.ensure() and 0))
'''


def start_slow(root: Path) -> 'subprocess.Popen[str]':
    """Start a set-up whose only step lasts until the file `release` is there."""
    # A test run in the background ignores Ctrl-C; what it starts would too.
    return subprocess.Popen([sys.executable, '-u', '-c', SLOW], cwd=root, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.mark.training
@pytest.mark.parametrize('number', [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_second_set_up_waits_for_the_first_and_continues_what_that_left(
    tools: SimpleNamespace, number: int | None,
) -> None:
    first, started, release = start_slow(tools.root), tools.root / 'started', tools.root / 'release'
    deadline = time.monotonic() + 60
    while not started.exists() or not started.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child = Path('/proc', started.read_text().strip())
    if number == signal.SIGKILL:  # its child goes on and holds the lock
        first.kill()
        first.wait()
    second = start_slow(tools.root)
    assert 'Another set-up is at work' in second.stdout.readline()
    if number in (signal.SIGINT, signal.SIGTERM):
        first.send_signal(number)
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 130 and 'Traceback' not in errors
        assert 'continues from here' in errors and not child.exists()
    release.touch()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and ('step' in output) == (number is not None)
