"""Child processes of the set-up: logged, timed, stopped as a group, their errors explained.

All output goes to the log, which is open and locked while the set-up runs.
"""
import os
import re
import signal
import subprocess
import sys
from typing import Dict, IO, List, Optional, Tuple

from bootstrap import stack
from bootstrap.project_env import LOG, PYTHON, SCRATCH, set_up_variables

DISK_GB = 12
STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

# Part of pip's output -> what it means and what to do. The first two help no later attempt.
DISK_FULL = (
    r'No space left on device',
    'the disk is full. Free some space (the set-up needs about {} GB in this folder, and pip '
    'keeps downloads in ~/.cache/pip), then run the same command again.'.format(DISK_GB))
NO_NETWORK = (
    r'NewConnectionError|NameResolutionError|Temporary failure in name resolution|'
    r'ConnectTimeoutError|Connection refused|Connection reset|Network is unreachable|ProxyError|'
    r'ReadTimeoutError|Read timed out|SSLError|CERTIFICATE_VERIFY_FAILED',
    'the package index cannot be reached. Check the network, the proxy (HTTPS_PROXY), the '
    'certificates (PIP_CERT) and the index (`pip config list`, PIP_INDEX_URL), then run the same '
    'command again: it goes on from here.')
PIP_FAILURES = (
    DISK_FULL,
    NO_NETWORK,
    (r'Python\.h: No such file',
     'the compiler works, but the header Python.h is missing. Install it with: '
     'sudo apt-get install -y python3-dev'),
    (r'Killed signal|[Oo]ut of memory|[Cc]annot allocate memory',
     'the compiler ran out of memory. Run the same command with one job: '
     'MAX_JOBS=1 before the command.'),
    (r'(?:No matching distribution found for|requested \(constraint\)) ([^\s(]+)',
     'the package index was reached, but has no {} for this Python and platform. Check that '
     '`pip config list` and PIP_INDEX_URL name a complete index and that PIP_CONSTRAINT is not '
     'set.'),
)


class SetupError(Exception):
    """What is wrong and what to do about it, in one paragraph; `tail` is the end of the log."""

    def __init__(self, message: str, tail: str = '') -> None:
        super().__init__(message)
        self.tail = tail


def pip_failure(output: str) -> SetupError:
    """The error for what a failed pip printed."""
    tail = '\n'.join(output.strip().splitlines()[-12:])
    for pattern, message in PIP_FAILURES:
        found = re.search(pattern, output)
        if found:
            return SetupError(message.format(*found.groups()), tail)
    return SetupError('a step of the set-up failed. The whole output stands in {}; running the '
                      'same command again repeats only what is missing.'.format(LOG), tail)


def duration(seconds: float) -> str:
    """Seconds as a reader wants them."""
    minutes, rest = divmod(int(round(seconds)), 60)
    return '{} min {} s'.format(minutes, rest) if minutes else '{} s'.format(rest)


def read_log(start: int) -> str:
    """What was logged from a byte offset on."""
    with open(str(LOG), 'rb') as log:
        log.seek(start)
        return log.read().decode('utf-8', 'replace')


def compiled_so_far() -> str:
    """ninja's last '[12/97]' in the log, '' if nothing is being compiled."""
    end = os.path.getsize(str(LOG))
    counts = re.findall(r'^\s*\[\d+/\d+\]', read_log(max(0, end - 20000)), re.MULTILINE)
    return ' compiled: ' + counts[-1].strip() if counts else ''


def show_progress(elapsed: int) -> None:
    """A running clock on a terminal; elsewhere one line a minute."""
    text = '      {}{}'.format(duration(elapsed), compiled_so_far())
    if sys.stdout.isatty():
        print('\r' + text.ljust(60), end='', flush=True)
    elif elapsed % 60 == 0:
        print(text, flush=True)


def wait(child: 'subprocess.Popen[bytes]') -> None:
    """Waits for a child and shows the time it takes."""
    elapsed = 0
    while child.poll() is None:
        try:
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            elapsed += 1
            show_progress(elapsed)
    if elapsed and sys.stdout.isatty():
        print('\r' + ' ' * 60 + '\r', end='', flush=True)


def signal_group(child: 'subprocess.Popen[bytes]', number: int) -> None:
    """Sends a signal to a child and all below it."""
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        pass


def stop(child: 'subprocess.Popen[bytes]') -> None:
    """Interrupts a child, so that pip removes its temporary folders, then kills what is left."""
    try:
        signal_group(child, signal.SIGINT)
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        pass
    finally:
        signal_group(child, signal.SIGKILL)


class Runner:
    """Runs the children of one set-up, whose output goes to the open, locked log."""

    def __init__(self, log: IO[bytes]) -> None:
        self.log = log

    def start(self, command: List[str], env: Dict[str, str]) -> 'subprocess.Popen[bytes]':
        """Starts a child in a session of its own, so that stopping it reaches all below it."""
        return subprocess.Popen(
            command, env=env, cwd=str(stack.ROOT), stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING))

    def run(self, command: List[str], env: Optional[Dict[str, str]] = None) -> Tuple[int, str]:
        """Runs a command; returns its exit status and what it printed."""
        self.log.write('\n$ {}\n'.format(' '.join(command)).encode('utf-8'))
        self.log.flush()
        start = os.fstat(self.log.fileno()).st_size
        # Held back while the child starts: an interruption in between would leave it alone.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            variables = dict(set_up_variables(), TMPDIR=str(SCRATCH), **(env or {}))
            child = self.start(command, variables)
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            raise
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            wait(child)
        except BaseException:
            stop(child)
            raise
        return child.returncode, read_log(start)

    def python(self, code: str) -> Tuple[int, str]:
        """Runs a piece of Python inside the environment."""
        return self.run([str(PYTHON), '-c', code])

    def try_pip(self, *args: str, env: Optional[Dict[str, str]] = None) -> Tuple[int, str]:
        """Runs pip inside the environment.

        Raises:
            SetupError: the disk is full or the network down, so that no other way would help.
        """
        command = [str(PYTHON), '-m', 'pip'] + list(args)
        command += ['--no-input', '--disable-pip-version-check']
        if args[0] == 'install':
            command += ['--progress-bar', 'off', '--constraint', str(stack.CONSTRAINTS)]
        status, output = self.run(command, env)
        if status and re.search(DISK_FULL[0] + '|' + NO_NETWORK[0], output):
            raise pip_failure(output)
        return status, output

    def pip(self, *args: str, env: Optional[Dict[str, str]] = None) -> None:
        """Runs pip inside the environment.

        Raises:
            SetupError: it failed.
        """
        status, output = self.try_pip(*args, env=env)
        if status:
            raise pip_failure(output)
