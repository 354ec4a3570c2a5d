"""Creates, repairs or reuses the project's virtual environment `.venv`.

    python3 tools/environment.py             set up what is missing (instant if nothing is)
    python3 tools/environment.py --repair    go through all steps, whatever was done before

quickstart.py and selftest.py call `ensure()`. A step costs seconds where its result is already
there, so an interrupted set-up goes on where it stopped. A stamp in .venv, written last, holds a
hash of all that determines the environment; while it fits, nothing is run. The log carries the
lock against a second set-up in this checkout: the children inherit it as their output, so the
lock lives until the last of them has ended.
"""
import argparse
import contextlib
import fcntl
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, IO, Iterator, NamedTuple, NoReturn

from bootstrap import stack, steps
from bootstrap.children import Runner, SetupError, duration
from bootstrap.project_env import (LOG, PYTHON, SCRATCH, STAMP, VENV, fingerprint, is_ready,
                                   run_variables, venv_version)

import doctor


class Step(NamedTuple):
    """One step: what it does, how long it takes the first time, and the function."""

    title: str
    takes: str
    action: Callable[[Runner], str]


def import_everything(runner: Runner) -> str:
    """The doctor's report on the new environment; what it finds broken ends the set-up."""
    every = doctor.NEEDED + doctor.OPTIONAL
    findings = doctor.examine(str(PYTHON), every, (), run_variables())
    runner.log.write('\n'.join(line for one in findings for line in doctor.lines_of(one)).encode())
    broken = ['{}: {}'.format(one.subject, one.text) for one in findings if one.level == 'broken']
    if broken:
        raise SetupError('the environment is complete, but not all of it works. {}. Repair it '
                         'with `python3 tools/environment.py --repair`; if that does not help, '
                         'remove it (`rm -rf .venv`) and run the same command again.'.format(
                             '; '.join(broken)))
    return 'all packages work'


STEPS = (
    Step('virtual environment', '10 s', steps.make_venv),
    Step('build tools', '20 s', steps.install_build_tools),
    Step('look for a ready-made wheel of mmcv', '10 s', steps.look_for_mmcv),
    Step('torch and torchvision (2.7 GB to download)', '2 to 10 min', steps.install_torch),
    Step('mmcv', '30 s with a wheel, else the build', steps.install_mmcv),
    Step('mmengine, mmdet, mmseg, mmpretrain, test tools', '1 to 3 min', steps.install_rest),
    Step('import everything once', '30 s', import_everything),
)


def warn_about_platform() -> None:
    """Tested on Linux x86-64 only."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ('Linux', 'x86_64'):
        print('note: this set-up is tested on Linux x86_64, this is {} {}.'.format(
            system, machine), flush=True)


@contextlib.contextmanager
def locked_log() -> Iterator[IO[bytes]]:
    """The emptied log, held by this process and its children alone."""
    VENV.mkdir(exist_ok=True)
    with open(str(LOG), 'ab') as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('Another set-up is at work in this folder (see .venv/setup.log): waiting for it '
                  'to end.', flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        yield log


def run_steps(runner: Runner) -> None:
    """Runs all steps, saying what each does and how long it took."""
    for number, step in enumerate(STEPS, 1):
        print('[{}/{}] {}: about {}'.format(number, len(STEPS), step.title, step.takes),
              flush=True)
        begin = time.monotonic()
        remark = step.action(runner)
        took = duration(time.monotonic() - begin)
        print('      done in {}'.format(took) + (' ({})'.format(remark) if remark else ''),
              flush=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[None]:
    """An empty folder for pip and the compilers; theirs in /tmp would outlive a kill."""
    shutil.rmtree(str(SCRATCH), ignore_errors=True)
    SCRATCH.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(str(SCRATCH), ignore_errors=True)


def set_up(log: IO[bytes]) -> None:
    """Runs all steps and writes the stamp."""
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()
    log.truncate(0)
    start = time.monotonic()
    with scratch_folder():
        run_steps(Runner(log))
    new_stamp = STAMP.with_suffix('.new')
    new_stamp.write_text(fingerprint(), encoding='utf-8')
    os.replace(str(new_stamp), str(STAMP))
    print('Environment ready after {}.\n'.format(duration(time.monotonic() - start)), flush=True)


def ensure(repair: bool = False) -> Path:
    """Makes .venv usable and returns its Python.

    Raises:
        SetupError: it cannot be done; the message has the remedy.
    """
    if repair or not is_ready():
        steps.refuse_all()
        warn_about_platform()
        with locked_log() as log:
            if repair or not is_ready():
                print('Setting up .venv with Python {} (log: .venv/setup.log). The first time '
                      'takes 5 to 20 min, mostly downloads.'.format(
                          steps.version_text(venv_version() or tuple(sys.version_info))),
                      flush=True)
                set_up(log)
    return PYTHON


def interrupt(number: int, frame: Any) -> NoReturn:
    """A kill ends the set-up as Ctrl-C does."""
    raise KeyboardInterrupt


def guarded(action: Callable[[], int]) -> int:
    """Runs a command; errors become one paragraph and a non-zero exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, interrupt)
    try:
        return action()
    except SetupError as error:
        if error.tail:
            print('\nEnd of {}:\n{}'.format(LOG, error.tail), file=sys.stderr)
        print('\nerror: {}'.format(error), file=sys.stderr)
        return 1
    except OSError as error:
        print('\nerror: {}. Check the disk and the rights on {}, then run the same command '
              'again.'.format(error, stack.ROOT), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted. The same command goes on from here.', file=sys.stderr)
        return 130


def main() -> int:
    """Reads the arguments and sets up."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repair', action='store_true', help='go through all steps')
    ensure(parser.parse_args().repair)
    print('.venv is ready (Python {}). Activate it with: source .venv/bin/activate'.format(
        steps.version_text(venv_version())))
    return 0


if __name__ == '__main__':
    sys.exit(guarded(main))
