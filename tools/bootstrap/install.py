"""Steps of the set-up. Each returns a remark on how it was done, or raises SetupError."""
import fcntl
import glob
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bootstrap import stacks
from bootstrap.stacks import ROOT, Stack

DISK_GB = 12

# mmcv.ops loads, computes, and says whether it was built for CUDA.
OPS_CHECK = '''
import torch
from mmcv.ops import get_compiling_cuda_version, nms
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
assert len(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1]) == 1
print('ops:', 'cpu' if get_compiling_cuda_version() == 'not available' else 'cuda')
'''
CUDA_CHECK = 'import torch; print("cuda:", torch.cuda.is_available() and torch.version.cuda)'
HEADER_CHECK = 'import sysconfig; open(sysconfig.get_paths()["include"] + "/Python.h")'

# Part of pip's output -> what it means and what to do. After the first two nothing else helps.
HOPELESS = {
    r'No space left on device':
        f'the disk is full. Free some space (about {DISK_GB} GB in this folder, and pip keeps '
        'downloads in ~/.cache/pip), then run the same command again.',
    r'(?:NewConnection|NameResolution|Proxy|ReadTimeout|SSL)Error|Temporary failure in name|'
    r'ConnectTimeout|Connection (?:refused|reset)|Network is unreachable|Read timed out|VERIFY_FAI':
        'the package index cannot be reached. Check the network, the proxy (HTTPS_PROXY), the '
        'certificates (PIP_CERT) and the index (`pip config list`, PIP_INDEX_URL), then run the '
        'same command again: it goes on from here.',
}
PIP_FAILURES = {
    **HOPELESS,
    r'Python\.h: No such file':
        'the header Python.h is missing. Install it with: sudo apt-get install -y python3-dev',
    r'Killed signal|[Oo]ut of memory|[Cc]annot allocate memory':
        'the compiler ran out of memory. Run the same command with one job: MAX_JOBS=1 before it.',
    r'(?:No matching distribution found for|requested \(constraint\)) ([^\s(]+)':
        'the package index was reached, but has no {} for this Python and platform. Check that '
        '`pip config list` and PIP_INDEX_URL name a complete index and that PIP_CONSTRAINT is not '
        'set.',
}


class SetupError(Exception):
    """What is wrong and what to do about it, in one paragraph."""


def pip_failure(output: str) -> SetupError:
    """The error for what a failed pip printed, with the end of that."""
    tail = '\n'.join(output.strip().splitlines()[-12:])
    for pattern, message in PIP_FAILURES.items():
        found = re.search(pattern, output)
        if found:
            return SetupError(message.format(*found.groups()), tail)
    return SetupError('a step of the set-up failed; its whole output is in setup.log of the '
                      'environment. Running the same command again repeats only what is missing.',
                      tail)


def duration(seconds: float) -> str:
    """Seconds as a reader wants them."""
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest} s' if minutes else f'{rest} s'


@contextmanager
def locked_log(stack: Stack) -> Iterator[IO[bytes]]:
    """The log, which carries the lock against a second set-up.

    The children inherit it as their output, so the lock lives until the last of them has ended.
    """
    stack.venv.mkdir(exist_ok=True)
    with open(stack.venv / 'setup.log', 'ab') as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'Another set-up is at work in {stack.folder}: waiting for it to end.',
                  flush=True)
            fcntl.flock(log, fcntl.LOCK_EX)
        yield log


class Setup:
    """One set-up: runs commands inside the environment, their output in the open, locked log."""

    def __init__(self, stack: Stack, log: IO[bytes]) -> None:
        self.stack, self.log = stack, log
        self.scratch = stack.venv / 'setup-tmp'  # /tmp would keep what a kill leaves behind

    def run(self, command: list[str], **variables: str) -> tuple[int, str]:
        """Run a command; return its exit status and what it printed."""
        self.log.write(f'\n$ {" ".join(command)}\n'.encode())
        self.log.flush()
        start = self.log.tell()
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**self.stack.variables(), 'TMPDIR': str(self.scratch), **variables},
            start_new_session=True)
        try:
            self._wait(child, start)
        except BaseException:
            stop(child)
            raise
        return child.returncode, self._logged(start)

    def _wait(self, child: subprocess.Popen, start: int) -> None:
        began = time.monotonic()
        while True:
            try:
                child.wait(timeout=30)
                return
            except subprocess.TimeoutExpired:
                last = self._logged(start).strip().splitlines()[-1:] or ['']
                print(f'      {duration(time.monotonic() - began)}: {last[0][:70]}', flush=True)

    def _logged(self, start: int) -> str:
        with open(self.log.name, 'rb') as log:
            log.seek(start)
            return log.read().decode('utf-8', 'replace')

    def python(self, code: str) -> tuple[int, str]:
        """Run a piece of Python inside the environment."""
        return self.run([str(self.stack.python), '-c', code])

    def try_pip(self, *args: str, **variables: str) -> tuple[int, str]:
        """Run pip inside the environment.

        Raises:
            SetupError: the disk is full or the network down, so that no other way would help.
        """
        command = [str(self.stack.python), '-m', 'pip', *args, '--no-input',
                   '--disable-pip-version-check']
        if args[0] == 'install':
            command += ['--progress-bar', 'off', '--constraint', str(self.stack.constraints)]
        status, output = self.run(command, **variables)
        if status and any(re.search(pattern, output) for pattern in HOPELESS):
            raise pip_failure(output)
        return status, output

    def pip(self, *args: str, **variables: str) -> None:
        """Run pip inside the environment; raise SetupError if it fails."""
        status, output = self.try_pip(*args, **variables)
        if status:
            raise pip_failure(output)


def stop(child: subprocess.Popen) -> None:
    """Interrupt a child and all below it, so that pip tidies up, then kill what is left."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


# --- before anything is written -------------------------------------------------------------------


def runs(python: str) -> str:
    """'3.11' if this command is such a Python that can make environments, else ''."""
    code = 'import sys, venv, ensurepip; print("{}.{}".format(*sys.version_info))'
    try:
        done = subprocess.run([python, '-c', code], capture_output=True, text=True)
    except OSError:
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def find_python(stack: Stack, given: str | None = None) -> str:
    """A Python that the stack exists for: the given one, this one, or one of this machine.

    Raises:
        SetupError: there is none.
    """
    this = getattr(sys, '_base_executable', None) or sys.executable
    candidates = [given] if given else [this] if stack.any_python else []
    if not given:
        pyenv = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
        for version in stack.pythons:
            candidates += [f'python{version}',
                           *sorted(glob.glob(f'{pyenv}/versions/{version}.*/bin/python'))]
    for python in candidates:
        if runs(python) in stack.pythons:
            return python
    version = '{}.{}'.format(*sys.version_info)
    if version in stack.pythons and importlib.util.find_spec('ensurepip') is None:
        raise SetupError(f'Python {version} at {sys.executable} has no ensurepip module, so it '
                         'cannot make a virtual environment. Install it with: sudo apt-get '
                         f'install -y python{version}-venv')
    wanted = ', '.join(sorted(stack.pythons, key=lambda text: int(text[2:])))
    tried = f'{given} is not one of them' if given else 'none was found on PATH or below ~/.pyenv'
    raise SetupError(f'the {stack.name} stack needs Python {wanted}: {tried}. Install one (for '
                     f'example `sudo apt-get install -y python{stack.pythons[0]}-venv` or `pyenv '
                     f'install {stack.pythons[0]}`) and name it: `{stack.command} --python '
                     f'/path/to/python{stack.pythons[0]}`.')


def refuse(stack: Stack) -> None:
    """Refuse an environment that cannot be completed."""
    version = stack.venv_version()
    if version and version.rpartition('.')[0] not in stack.pythons:
        raise SetupError(f'{stack.folder} holds Python {version}, which the {stack.name} stack '
                         f'does not exist for. Remove it with `rm -rf {stack.folder}` and run the '
                         'same command again.')
    others = [name for key, names in stacks.families(stack.installed()).items()
              if key != stack.family for name in names]
    if others:
        raise SetupError(f'{stack.folder} holds packages of the other family ({", ".join(others)})'
                         f', which share their files with those of {stack.name}. Move it away '
                         f'(`mv {stack.folder} {stack.folder}-old`) and run the same command '
                         'again.')


def refuse_missing_compiler(setup: Setup) -> None:
    """mmcv has to be compiled where no wheel fits."""
    why = f'no wheel of mmcv {setup.stack.pins()[setup.stack.mmcv]} fits this Python, and '
    if stacks.compiler() is None:
        raise SetupError(why + 'there is no C++ compiler to build it with ($CXX, c++, g++, '
                         'clang++). Install one with: sudo apt-get install -y g++ python3-dev')
    if setup.python(HEADER_CHECK)[0]:
        minor = setup.stack.venv_version().rpartition('.')[0]
        raise SetupError(why + 'the header Python.h to build it with is missing. Install it with: '
                         f'sudo apt-get install -y python{minor}-dev')


# --- steps ----------------------------------------------------------------------------------------


def is_whole(record: Path) -> bool:
    """Whether all files of an installed distribution are there; pip writes the list last."""
    if not record.exists():
        return False
    files = (line.rsplit(',', 2)[0].strip('"') for line in record.read_text().splitlines() if line)
    return all(name.endswith('.pyc') or (record.parent.parent / name).exists() for name in files)


def forget_damaged(stack: Stack) -> list[str]:
    """Drop the entries of half-installed packages, so that pip installs them again."""
    site = stack.site_packages()
    damaged = [info for info in site.glob('*.dist-info') if not is_whole(info / 'RECORD')]
    for path in [*damaged, *site.glob('~*')]:
        shutil.rmtree(path)
    return [path.name.split('-')[0] for path in damaged]


def make_venv(setup: Setup, python: str) -> str:
    """A virtual environment with a working pip; what is in an existing one stays."""
    stack = setup.stack
    damaged = forget_damaged(stack)
    if stack.python.exists() and setup.run([str(stack.python), '-m', 'pip', '--version'])[0] == 0:
        return 'to be repaired: ' + ', '.join(damaged) if damaged else 'already there'
    for link in stack.venv.glob('bin/python*'):
        link.unlink()  # venv keeps links that lead nowhere
    status, output = setup.run([python, '-m', 'venv', str(stack.venv)])
    if status:
        raise SetupError(f'the virtual environment cannot be made. Remove {stack.folder} with '
                         f'`rm -rf {stack.folder}` and run the same command again.', output[-1000:])
    return f'Python {stack.venv_version()}'


def install_build_tools(setup: Setup) -> str:
    """What a build of mmcv needs; no compiler is an error now, not after gigabytes of downloads."""
    stack = setup.stack
    setup.pip('install', *map(stack.pinned, stacks.BUILD_TOOLS))
    if stack.mmcv in stack.installed():
        return ''
    status, _ = setup.try_pip('install', '--dry-run', '--no-deps', '--no-cache-dir',
                              '--only-binary', stack.mmcv, stack.pinned(stack.mmcv))
    if status == 0:
        return 'there is a wheel of mmcv'
    refuse_missing_compiler(setup)
    return f'no wheel of mmcv: it will be compiled, about {max(2, 14 // jobs())} min'


def install_torch(setup: Setup) -> str:
    """torch and torchvision together: they have to match."""
    stack = setup.stack
    free = shutil.disk_usage(ROOT).free / 1e9
    if not stack.has_pinned('torch') and free < DISK_GB:
        raise SetupError(f'{free:.1f} GB are free in {ROOT}, about {DISK_GB} GB are needed. Free '
                         'some space, or clone the project to a larger disk.')
    setup.pip('install', stack.pinned('torch'), stack.pinned('torchvision'))
    return 'torch {torch}, torchvision {torchvision}'.format(**stack.installed())


def install_mmcv(setup: Setup) -> str:
    """mmcv with ops for this torch: the one that is there, a wheel, or a build.

    pip's cache is left out throughout: its key for mmcv does not know of torch.
    """
    stack, wanted = setup.stack, ops_to_build(setup)
    note = stack.venv / 'mmcv-built-for'
    torch = stack.installed()['torch']

    def accepted(how: str) -> str:
        """The remark if mmcv is there and its ops load; else it is removed."""
        use_opencv_that_loads(setup)
        status, output = setup.python(OPS_CHECK)
        ops = output.rpartition('ops: ')[2].strip() if status == 0 else ''
        if ops in ('cuda', wanted):
            note.write_text(f'{torch} {ops}\n')
            return f'{how}, {ops} ops'
        if stack.mmcv in stack.installed():
            setup.pip('uninstall', '-y', stack.mmcv)
        return ''

    built_for = note.read_text().split()[0] if note.is_file() else torch
    if stack.has_pinned(stack.mmcv) and built_for == torch:
        there = accepted('already there')
        if there:
            return there
    if stack.mmcv in stack.installed():
        setup.pip('uninstall', '-y', stack.mmcv)
    install = ('install', '--no-cache-dir', stack.pinned(stack.mmcv))
    if setup.try_pip(*install, '--only-binary', stack.mmcv)[0] == 0:
        there = accepted('from a wheel')
        if there:
            return there
    refuse_missing_compiler(setup)
    print(f'      no wheel fits: compiling the {wanted} ops', flush=True)
    setup.pip(*install, '-v', '--no-build-isolation', '--no-binary', stack.mmcv,
              **build_variables(wanted))
    there = accepted('compiled')
    if not there:
        raise SetupError('mmcv was compiled, but its ops do not load; the reason is at the end of '
                         f'{stack.folder}/setup.log.')
    return there


def jobs() -> int:
    """Parallel compilers: one per core, if each has about 1.5 GB of memory."""
    if os.environ.get('MAX_JOBS', '').isdigit():
        return int(os.environ['MAX_JOBS'])
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9)))


def ops_to_build(setup: Setup) -> str:
    """'cuda' where torch sees a GPU and nvcc is of its CUDA's major version, else 'cpu'."""
    cuda = re.search(r'cuda: (\d+)', setup.python(CUDA_CHECK)[1])
    if cuda is None:
        return 'cpu'
    nvcc = stacks.nvcc()
    release = re.search(r'release (\d+)', setup.run([nvcc, '--version'])[1] if nvcc else '')
    if release and release.group(1) == cuda.group(1):
        return 'cuda'
    print(f'      note: there is a GPU, but no nvcc of CUDA {cuda.group(1)}, so mmcv gets CPU ops '
          'and the GPU stays unused.\n      Once that toolkit is installed: '
          f'{setup.stack.command} --repair', flush=True)
    return 'cpu'


def build_variables(ops: str) -> dict[str, str]:
    """Environment of mmcv's build; without -g0 it takes twice as long."""
    hidden = {} if ops == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}  # else it builds for CUDA
    return {
        'CFLAGS': (os.environ.get('CFLAGS', '') + ' -g0').strip(),
        'CXX': os.environ.get('CXX') or stacks.compiler() or 'c++',
        'MAX_JOBS': str(jobs()),
        'MMCV_WITH_OPS': '1',
        'FORCE_CUDA': '1' if ops == 'cuda' else '0',
        **hidden,
    }


def use_opencv_that_loads(setup: Setup) -> None:
    """opencv-python needs libGL; its headless variant, with the same files, does not."""
    lacks = 'cannot open shared object'
    if lacks in setup.python('import cv2')[1]:
        setup.pip('install', '--force-reinstall', '--no-deps', 'opencv-python-headless')
        output = setup.python('import cv2')[1]
        if lacks in output:
            raise SetupError(f'opencv does not load: {output.strip().splitlines()[-1]}. Install '
                             'the system libraries: sudo apt-get install -y libgl1 libglib2.0-0')


def install_rest(setup: Setup) -> str:
    """The other packages, and this one in editable form."""
    setup.pip('install', '--no-build-isolation', '--editable', setup.stack.extras)
    use_opencv_that_loads(setup)
    return admit_mmcv(setup.stack)


def admit_mmcv(stack: Stack) -> str:
    """Raise the bound of mmdet and mmseg where they refuse the stack's mmcv on import.

    Both name the first version that they refuse in a constant of their `__init__.py`.
    """
    version, raised = stack.pins()[stack.mmcv], []
    for package in ('mmdet', 'mmseg'):
        path = stack.site_packages() / package / '__init__.py'
        text = path.read_text()
        new = re.sub(rf"^(mmcv_maximum_version|MMCV_MAX) = '{version}'$", rf"\1 = '{version}.1'",
                     text, flags=re.MULTILINE)
        if new != text:
            path.unlink()  # it may be a link into a cache
            path.write_text(new)
            raised.append(package)
    return f'{" and ".join(raised)} made to accept mmcv {version}' if raised else ''
