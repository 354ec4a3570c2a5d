"""When the environment is reused, what the set-up refuses and says, how it is interrupted.

Without network or pip, in a copy of the checkout: `.venv` of the real one stays untouched.
"""
import ast
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Tuple

import pytest
from set_up_copy import (CONSTRAINTS, PARTS, ROOT, FakeRunner, checkout, error_of, install,
                         make_ready, site_of, tools)

__all__ = ['checkout', 'tools']  # fixtures
TEN_LINES = 'x\n' * 10


# --- when the environment is reused ---------------------------------------------------------------


def test_a_finished_environment_is_reused(tools: SimpleNamespace) -> None:
    assert not tools.project_env.is_ready()
    make_ready(tools)
    assert tools.project_env.is_ready()


@pytest.mark.parametrize('path', [CONSTRAINTS, 'setup.py', '.venv/pyvenv.cfg'])
def test_a_change_of_what_determines_the_environment_voids_the_stamp(
    tools: SimpleNamespace, path: str,
) -> None:
    make_ready(tools)
    before = tools.project_env.fingerprint()
    changed = (tools.root / path).read_text().replace('3.11.7', '3.11.8') + '# changed'
    (tools.root / path).write_text(changed)
    assert tools.project_env.fingerprint() != before
    assert not tools.project_env.is_ready()


def test_a_change_of_anything_else_keeps_the_stamp(tools: SimpleNamespace) -> None:
    make_ready(tools)
    (tools.root / 'README.md').write_text('other words')
    assert tools.project_env.is_ready()


@pytest.mark.parametrize('change', ['removed', 'other version', 'upstream beside', 'no python'])
def test_an_environment_changed_by_hand_is_not_reused(
    tools: SimpleNamespace, change: str,
) -> None:
    make_ready(tools)
    mmcv = next(site_of(tools.root).glob('onedl_mmcv-*'))
    if change == 'removed':
        shutil.rmtree(mmcv)
    elif change == 'other version':
        mmcv.rename(mmcv.with_name('onedl_mmcv-2.3.5.dist-info'))
    elif change == 'upstream beside':
        install(tools.root, 'mmdet', '3.3.0')
    else:
        tools.project_env.PYTHON.unlink()
    assert not tools.project_env.is_ready()


def test_a_torch_of_another_flavour_in_the_tested_version_is_accepted(
    tools: SimpleNamespace,
) -> None:
    make_ready(tools)
    torch = next(site_of(tools.root).glob('torch-*'))
    torch.rename(torch.with_name(torch.name.replace('.dist-info', '+cpu.dist-info')))
    assert tools.project_env.is_ready()


def test_an_interrupted_set_up_leaves_no_stamp_and_the_next_one_completes(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:
    calls: List[str] = []

    def second(runner: Any) -> str:
        calls.append('second')
        if len(calls) == 2:
            raise KeyboardInterrupt
        make_ready(tools)
        return 'done at last'

    step = tools.environment.Step
    monkeypatch.setattr(tools.environment, 'STEPS', (
        step('one', '1 s', lambda runner: calls.append('first') or ''),
        step('two', '1 s', second)))
    with pytest.raises(KeyboardInterrupt):
        tools.environment.ensure()
    assert not tools.project_env.STAMP.exists()
    tools.environment.ensure()
    tools.environment.ensure()
    assert calls == ['first', 'second'] * 2
    assert 'done at last' in capsys.readouterr().out


def test_half_installed_packages_are_installed_again(tools: SimpleNamespace) -> None:
    install(tools.root, 'whole', '1.0', ('whole.py',))
    broken = install(tools.root, 'broken', '1.0', ('broken.py', 'lost.py'))
    (site_of(tools.root) / 'lost.py').unlink()
    started = install(tools.root, 'started', '1.0')
    (started / 'RECORD').unlink()
    (site_of(tools.root) / '~orch').mkdir()
    assert sorted(tools.steps.forget_damaged()) == ['broken', 'started']
    assert not broken.exists()
    assert sorted(path.name for path in site_of(tools.root).glob('*-*')) == ['whole-1.0.dist-info']
    assert not (site_of(tools.root) / '~orch').exists()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize('version', [(3, 9, 18), (3, 13, 0)])
def test_an_unsupported_python_is_named_with_the_allowed_range(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, version: Tuple[int, int, int],
) -> None:
    fake = SimpleNamespace(version_info=version, executable='/x/python',
                           argv=['tools/quickstart.py'])
    monkeypatch.setattr(tools.steps, 'sys', fake)
    monkeypatch.setattr(tools.steps, 'other_pythons', lambda: [])
    message = error_of(tools.steps.refuse_python, tools.children.SetupError)
    assert '.'.join(map(str, version)) in message
    assert '3.10 to 3.12' in message and '`python3.11 tools/quickstart.py`' in message


def test_a_venv_of_an_unsupported_python_is_to_be_removed(tools: SimpleNamespace) -> None:
    make_ready(tools)
    (tools.root / '.venv' / 'pyvenv.cfg').write_text('version = 3.13.0\n')
    message = error_of(tools.steps.refuse_python, tools.children.SetupError)
    assert '3.13.0' in message and 'rm -rf .venv' in message


def test_the_files_that_refuse_an_old_python_can_be_read_by_it() -> None:
    sources = [*(ROOT / 'tools' / 'bootstrap').glob('*.py'),
               *(ROOT / 'tools' / f'{name}.py' for name in PARTS[5:])]
    for source in sources:
        tree = ast.parse(source.read_text(), feature_version=(3, 6))
        futures = [node for node in tree.body if isinstance(node, ast.ImportFrom)
                   and node.module == '__future__']
        assert not futures, source


def test_a_missing_venv_module_names_the_package(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_spec(name: str) -> Any:
        return None if name == 'ensurepip' else object()

    fake = SimpleNamespace(util=SimpleNamespace(find_spec=find_spec))
    monkeypatch.setattr(tools.steps, 'importlib', fake)
    message = error_of(tools.steps.refuse_missing_venv_module, tools.children.SetupError)
    assert 'python{}.{}-venv'.format(*sys.version_info[:2]) in message


def test_a_missing_compiler_is_only_an_error_when_mmcv_has_to_be_built(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('PATH', '/nowhere')
    monkeypatch.delenv('CXX', raising=False)
    found = FakeRunner(tools)
    assert tools.steps.look_for_mmcv(found.real) == 'found'
    none = FakeRunner(tools, ('--dry-run', 1, 'No matching distribution found for onedl-mmcv'))
    message = error_of(lambda: tools.steps.look_for_mmcv(none.real), tools.children.SetupError)
    assert 'apt-get install -y g++ python3-dev' in message


def test_missing_python_headers_are_found_before_the_build(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_ready(tools)
    runner = FakeRunner(tools, ('Python.h', 1, 'FileNotFoundError'))
    monkeypatch.setattr(tools.stack, 'compiler', lambda: '/usr/bin/c++')
    message = error_of(lambda: tools.steps.refuse_missing_compiler(runner.real),
                       tools.children.SetupError)
    assert 'python3-dev' in message and 'python3.11-dev' in message


def test_a_small_disk_is_refused_before_torch_is_downloaded(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = SimpleNamespace(free=3e9)
    monkeypatch.setattr(tools.steps.shutil, 'disk_usage', lambda path: usage)
    runner = FakeRunner(tools)
    message = error_of(lambda: tools.steps.install_torch(runner.real), tools.children.SetupError)
    assert '3.0 GB' in message and '12 GB' in message and not runner.commands


def test_both_families_are_an_error_with_both_ways_out(tools: SimpleNamespace) -> None:
    make_ready(tools)
    install(tools.root, 'mmcv', '2.1.0')
    install(tools.root, 'mmdet', '3.3.0')
    message = error_of(tools.steps.refuse_upstream, tools.children.SetupError)
    assert '.venv/bin/python -m pip uninstall -y mmcv mmdet onedl-mmcv' in message
    assert 'to keep OneDL: python3 tools/environment.py' in message
    assert 'to keep upstream:' in message and '-e ".[upstream]"' in message


def test_an_environment_with_the_upstream_family_is_left_alone(tools: SimpleNamespace) -> None:
    install(tools.root, 'mmengine', '0.10.7')
    message = error_of(tools.environment.ensure, tools.children.SetupError)
    assert 'mv .venv .venv-upstream' in message and 'pip install -e .' in message
    assert sorted(path.name for path in (tools.root / '.venv').iterdir()) == ['lib', 'pyvenv.cfg']


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
    tools: SimpleNamespace, output: str, words: List[str],
) -> None:
    error = tools.children.pip_failure(TEN_LINES * 3 + output)
    assert all(word in str(error) for word in words)
    assert len(error.tail.splitlines()) == 12 and '\n' not in str(error)


def test_a_lost_network_is_not_taken_for_a_missing_wheel(tools: SimpleNamespace) -> None:
    runner = FakeRunner(tools, ('--dry-run', 1, 'Temporary failure in name resolution'))
    message = error_of(lambda: tools.steps.look_for_mmcv(runner.real), tools.children.SetupError)
    assert 'cannot be reached' in message


# --- interruptions and locks, in real processes ---------------------------------------------------


SLOW = '''
import sys
sys.path.insert(0, 'tools')
import environment
from bootstrap import project_env
CHILD = """
import pathlib, time
pathlib.Path('started').touch()
while not pathlib.Path('release').exists():
    time.sleep(0.02)
"""
def slow(runner):
    runner.run([sys.executable, '-c', CHILD])
    return ''
environment.STEPS = (environment.Step('slow', 'a while', slow),)
environment.is_ready = lambda: project_env.STAMP.exists()
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


def end(process: 'subprocess.Popen[str]') -> Tuple[int, str, str]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_children_and_says_how_to_go_on(
    tools: SimpleNamespace, number: int,
) -> None:
    process = start_slow(tools.root)
    wait_for(tools.root / 'started')
    process.send_signal(number)
    status, _, errors = end(process)
    assert status == 130 and 'goes on from here' in errors and 'Traceback' not in errors
    (tools.root / 'release').touch()
    status, output, _ = end(start_slow(tools.root))
    assert status == 0 and 'Another set-up' not in output


def test_a_second_set_up_waits_for_the_first_and_repeats_nothing(tools: SimpleNamespace) -> None:
    first = start_slow(tools.root)
    wait_for(tools.root / 'started')
    second = start_slow(tools.root)
    assert 'Another set-up is at work' in second.stdout.readline()
    (tools.root / 'release').touch()
    assert end(first)[0] == 0
    status, output, _ = end(second)
    assert status == 0 and '[1/1]' not in output


def test_the_lock_lasts_until_the_children_of_a_killed_set_up_have_ended(
    tools: SimpleNamespace,
) -> None:
    first = start_slow(tools.root)
    wait_for(tools.root / 'started')
    first.kill()
    end(first)
    second = start_slow(tools.root)
    assert 'Another set-up is at work' in second.stdout.readline()
    (tools.root / 'release').touch()
    status, output, _ = end(second)
    assert status == 0 and '[1/1]' in output
