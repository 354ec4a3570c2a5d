"""Create, repair or reuse the project's virtual environment of a stack.

    python3 tools/environment.py                      OneDL, in .venv (instant if all is there)
    python3 tools/environment.py --stack upstream     upstream's packages, in .venv-upstream
    python3 tools/environment.py --stack upstream-newest     the same with mmcv 2.2, recent torch
    python3 tools/environment.py --repair             all steps, whatever was done before

quickstart.py and selftest.py call `ensure()`. A step costs seconds where its result is already
there, so an interrupted set-up continues where it stopped. A stamp, written last, holds a hash of
all that determines the environment; while it fits, nothing is run.
"""
import argparse
import fcntl
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable

import doctor
from bootstrap import install
from bootstrap.install import SetupError
from bootstrap.stacks import ROOT, STACKS, Stack


def examine(stack: Stack) -> str:
    """Run the doctor on the new environment; what it finds broken ends the set-up."""
    findings = doctor.examine(str(stack.python), stack.variables())
    broken = [f'{one.subject}: {one.text}' for one in findings if one.level == 'broken']
    if broken:
        raise SetupError(f'the environment is complete, but not all of it works. '
                         f'{"; ".join(broken)}. Repair it with `{stack.command} --repair`; if that '
                         f'does not help, remove it (`rm -rf {stack.folder}`) and run the same '
                         'command again.')
    return 'all packages work'


def run_steps(stack: Stack, python: str) -> None:
    """Run all steps, saying what each does and how long it took."""
    steps: dict[str, Callable[[Stack], str]] = {
        'virtual environment': lambda stack: install.make_venv(stack, python),
        'torch and torchvision, 2 to 3 GB to download: 2 to 10 min': install.install_torch,
        'mmcv: 30 s with a wheel, else compiled: about '
        f'{max(2, 14 // install.count_jobs())} min': install.install_mmcv,
        'mmengine, mmdet, mmseg, mmpretrain, test tools: 1 to 3 min': install.install_rest,
        'import everything once: 30 s': examine,
    }
    for number, (title, step) in enumerate(steps.items(), 1):
        print(f'[{number}/{len(steps)}] {title}', flush=True)
        start = time.monotonic()
        remark = step(stack)
        print(f'      done in {time.monotonic() - start:.0f} s' + f' ({remark})' * bool(remark),
              flush=True)


def set_up(stack: Stack, python: str) -> None:
    """Run all steps in a fresh folder for temporary files; the stamp is written last."""
    print(f'Setting up {stack.folder} for the {stack.name} stack. The first time takes 5 to 20 min, '
          'mostly downloads.', flush=True)
    for file in (stack.stamp, stack.log):
        file.unlink(missing_ok=True)
    shutil.rmtree(stack.scratch, ignore_errors=True)
    stack.scratch.mkdir()
    try:
        run_steps(stack, python)
    finally:
        shutil.rmtree(stack.scratch, ignore_errors=True)
    stack.stamp.write_text(stack.fingerprint())
    print('Environment ready.\n', flush=True)


def ensure(key: str = 'onedl', *, repair: bool = False, python: str | None = None) -> Stack:
    """Make the environment of a stack usable; return the stack.

    Raises:
        SetupError: it cannot be done; the message says what to do.
    """
    stack = STACKS[key]
    if stack.is_ready() and not repair:
        return stack
    install.refuse(stack)
    python = install.find_python(stack, python)
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'):
        print(f'note: this set-up is tested on Linux x86_64, this is {platform.platform()}.')
    stack.venv.mkdir(exist_ok=True)
    with open(stack.venv / 'setup.lock', 'w') as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'Another set-up is at work in {stack.folder}: waiting for it to end.', flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if repair or not stack.is_ready():
            set_up(stack, python)
    return stack


def run_guarded(action: Callable[[], int]) -> int:
    """Run a command; errors become one paragraph and a non-zero exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a kill ends it as Ctrl-C does
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    try:
        return action()
    except (SetupError, OSError) as error:
        hint = (f'. Check the disk and the rights on {ROOT}, then run the same command again.'
                if isinstance(error, OSError) else '')
        print(f'\nerror: {error}{hint}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted. The same command continues from here.', file=sys.stderr)
        return 130


def make_parser(program_doc: str, **options: object) -> argparse.ArgumentParser:
    """Return a parser with the option that chooses an environment."""
    parser = argparse.ArgumentParser(
        description=program_doc, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
    parser.add_argument('--stack', choices=STACKS, default='onedl',
                        help='family of OpenMMLab packages (default: %(default)s)')
    return parser


def main() -> int:
    """Read the arguments and set up."""
    parser = make_parser(__doc__)
    parser.add_argument('--repair', action='store_true', help='go through all steps')
    parser.add_argument('--python', help='interpreter to make a new environment with')
    args = parser.parse_args()
    stack = ensure(args.stack, repair=args.repair, python=args.python)
    print(f'{stack.folder} is ready (Python {stack.venv_version()}). Activate it with: '
          f'source {stack.folder}/bin/activate')
    return 0


if __name__ == '__main__':
    sys.exit(run_guarded(main))
