"""Steps of the set-up. Each returns a remark on how it was done, or raises SetupError."""
import csv
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from bootstrap import stacks
from bootstrap.stacks import ROOT, Stack

DISK_GB = 12
BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')

# mmcv.ops loads, computes, and says whether it was built for CUDA.
OPS_CHECK = '''
import torch
from mmcv.ops import get_compiling_cuda_version, nms
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
assert len(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1]) == 1
print('ops:', 'cpu' if get_compiling_cuda_version() == 'not available' else 'cuda')
'''
CUDA_CHECK = 'import torch; print("cuda:", torch.cuda.is_available() and torch.version.cuda)'

# Part of pip's output -> what it means and what to do. After the first two nothing else helps.
HOPELESS = {
    r'No space left on device':
        f'the disk is full. Free some space (about {DISK_GB} GB in this folder, and pip keeps '
        'downloads in ~/.cache/pip), then run the same command again.',
    r'(?:NewConnection|NameResolution|Proxy|ReadTimeout|SSL)Error|Temporary failure in name|'
    r'ConnectTimeout|Connection (?:refused|reset)|Network is unreachable|Read timed out|VERIFY_FAI':
        'the package index cannot be reached. Check the network, the proxy (HTTPS_PROXY), the '
        'certificates (PIP_CERT) and the index (`pip config list`, PIP_INDEX_URL), then run the '
        'same command again: it continues from here.',
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
    """Return the error for what a failed pip printed, with the end of that output."""
    tail = '\n'.join(output.strip().splitlines()[-12:])
    for pattern, message in PIP_FAILURES.items():
        if found := re.search(pattern, output):
            return SetupError(message.format(*found.groups()), tail)
    return SetupError('a step of the set-up failed; its whole output is in setup.log of the '
                      'environment. Running the same command again repeats only what is missing.',
                      tail)


class Setup:
    """One set-up: runs commands inside the environment, their output in the log."""

    def __init__(self, stack: Stack, log: IO[str]) -> None:
        self.stack, self.log = stack, log
        self.scratch = stack.venv / 'setup-tmp'  # /tmp would keep what a kill leaves behind

    def run(self, *command: str, **variables: str) -> tuple[int, str]:
        """Run a command; return its exit status and what it printed."""
        print(f'\n$ {" ".join(command)}', file=self.log, flush=True)
        output, told = [], time.monotonic()
        child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True,
            pass_fds=[self.log.fileno()],  # the lock is held until the last child has ended
            env={**self.stack.variables(), 'TMPDIR': str(self.scratch), **variables})
        try:
            for line in child.stdout:
                print(line, end='', file=self.log, flush=True)
                output.append(line)
                if time.monotonic() - told > 30:
                    told = time.monotonic()
                    print(f'      ... {line.strip()[:70]}', flush=True)
            child.wait()
        except BaseException:
            stop(child)
            raise
        return child.returncode, ''.join(output)

    def python(self, code: str) -> tuple[int, str]:
        """Run a piece of Python inside the environment."""
        return self.run(str(self.stack.python), '-c', code)

    def pip(self, *args: str, check: bool = True, **variables: str) -> bool:
        """Run pip inside the environment; return whether it succeeded.

        Raises:
            SetupError: it failed; without `check` only where no other way would help, because the
                disk is full or the network down.
        """
        command = [str(self.stack.python), '-m', 'pip', *args, '--no-input',
                   '--disable-pip-version-check']
        if args[0] == 'install':
            command += ['--progress-bar', 'off', '--constraint', str(self.stack.constraints)]
        status, output = self.run(*command, **variables)
        if status and (check or any(re.search(pattern, output) for pattern in HOPELESS)):
            raise pip_failure(output)
        return status == 0


def stop(child: subprocess.Popen) -> None:
    """Interrupt a child and all below it, so that pip tidies up, then kill what is left."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def version_of(python: str) -> str:
    """Return '3.11' if this command is a Python 3.11 that can make environments, else ''."""
    code = 'import sys, venv, ensurepip; print("{}.{}".format(*sys.version_info))'
    try:
        done = subprocess.run([python, '-c', code], capture_output=True, text=True)
    except OSError:
        return ''
    return done.stdout.strip() if done.returncode == 0 else ''


def find_python(stack: Stack, given: str | None = None) -> str:
    """Return a Python that the stack exists for: the given one, this one, or one of this machine.

    Raises:
        SetupError: there is none.
    """
    this = getattr(sys, '_base_executable', None) or sys.executable
    candidates = [given] if given else [this] if stack.key == 'onedl' else []
    for version in stack.pythons if given is None else ():
        pyenv = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
        candidates += [f'python{version}', *glob.glob(f'{pyenv}/versions/{version}.*/bin/python')]
    for python in candidates:
        if version_of(python) in stack.pythons:
            return python
    first = stack.pythons[0]
    raise SetupError(
        f'the {stack.name} stack needs Python {" or ".join(stack.pythons)}, with its modules venv '
        f'and ensurepip: {f"{given} is not one" if given else "none was found"}. Install one (for '
        f'example `sudo apt-get install -y python{first}-venv` or `pyenv install {first}`) and '
        f'name it: `{stack.command} --python /path/to/python{first}`.')


def refuse(stack: Stack) -> None:
    """Refuse an environment that cannot be completed."""
    if stack.venv_version() not in ('', *stack.pythons):
        raise SetupError(f'{stack.folder} holds Python {stack.venv_version()}, which the '
                         f'{stack.name} stack does not exist for. Remove it with `rm -rf '
                         f'{stack.folder}` and run the same command again.')
    others = [name for key, names in stacks.families(stack.installed()).items()
              if key != stack.family for name in names]
    if others:
        raise SetupError(f'{stack.folder} holds packages of the other family ({", ".join(others)})'
                         f', which share their files with those of {stack.name}. Move it away '
                         f'(`mv {stack.folder} {stack.folder}-old`) and run the same command '
                         'again.')


# --- steps ----------------------------------------------------------------------------------------


def is_whole(info: Path) -> bool:
    """Return whether all files of an installed distribution are there; pip writes the list last."""
    record = info / 'RECORD'
    return record.exists() and all(
        row[0].endswith('.pyc') or (info.parent / row[0]).exists()
        for row in csv.reader(record.read_text().splitlines()) if row)


def forget_damaged(stack: Stack) -> list[str]:
    """Remove the entries of half-installed packages, so that pip installs them again."""
    site = stack.site_packages()
    damaged = [info for info in site.glob('*.dist-info') if not is_whole(info)]
    for path in [*damaged, *site.glob('~*')]:
        shutil.rmtree(path)
    return [path.name.split('-')[0] for path in damaged]


def make_venv(setup: Setup, python: str) -> str:
    """Make a virtual environment with a working pip; keep what is in an existing one."""
    stack = setup.stack
    damaged = forget_damaged(stack)
    if stack.python.exists() and setup.run(str(stack.python), '-m', 'pip', '--version')[0] == 0:
        return 'to be repaired: ' + ', '.join(damaged) if damaged else 'already there'
    for link in stack.venv.glob('bin/python*'):
        link.unlink()  # venv keeps links that lead nowhere
    status, output = setup.run(python, '-m', 'venv', str(stack.venv))
    if status:
        raise SetupError(f'the virtual environment cannot be made. Remove {stack.folder} with '
                         f'`rm -rf {stack.folder}` and run the same command again.', output[-1000:])
    return f'Python {stack.venv_version()}'


def install_torch(setup: Setup) -> str:
    """Install the build tools, then torch and torchvision together: they have to match."""
    stack = setup.stack
    free = shutil.disk_usage(ROOT).free / 1e9
    if 'torch' not in stack.installed() and free < DISK_GB:
        raise SetupError(f'{free:.1f} GB are free in {ROOT}, about {DISK_GB} GB are needed. Free '
                         'some space, or clone the project to a larger disk.')
    setup.pip('install', *map(stack.pinned, BUILD_TOOLS))
    setup.pip('install', stack.pinned('torch'), stack.pinned('torchvision'))
    return 'torch {torch}, torchvision {torchvision}'.format(**stack.installed())


def install_mmcv(setup: Setup) -> str:
    """Get mmcv with ops that load in this torch: keep the present one, take a wheel, or build it.

    pip's cache is left out: its key for mmcv does not know of torch.
    """
    stack, wanted = setup.stack, ops_to_build(setup)
    for how in ('already there', 'from a wheel', 'compiled'):
        if how == 'already there':
            if stack.installed().get(stack.mmcv) != stack.pins()[stack.mmcv]:
                continue
        elif not _install_mmcv(setup, wanted, compiled=how == 'compiled'):
            continue
        use_opencv_that_loads(setup)
        status, output = setup.python(OPS_CHECK)
        ops = output.rpartition('ops: ')[2].strip() if status == 0 else ''
        if ops in ('cuda', wanted):
            (stack.venv / 'mmcv-ops').write_text(ops)
            return f'{how}, {ops} ops'
    raise SetupError('mmcv was compiled, but its ops do not load; the reason is at the end of '
                     f'{stack.folder}/setup.log.')


def _install_mmcv(setup: Setup, ops: str, *, compiled: bool) -> bool:
    name = setup.stack.mmcv
    if name in setup.stack.installed():
        setup.pip('uninstall', '-y', name)
    install = ('install', '--no-cache-dir', setup.stack.pinned(name))
    if not compiled:
        return setup.pip(*install, '--only-binary', name, check=False)
    if stacks.compiler() is None:
        raise SetupError(f'no wheel of {name} fits, and there is no C++ compiler to build it with '
                         '($CXX or c++). Install one with: sudo apt-get install -y g++ python3-dev')
    print(f'      no wheel fits: compiling the {ops} ops, about {max(2, 14 // jobs())} min',
          flush=True)
    hidden = {} if ops == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}  # else it builds for CUDA
    return setup.pip(
        *install, '-v', '--no-build-isolation', '--no-binary', name, MAX_JOBS=str(jobs()),
        CFLAGS=(os.environ.get('CFLAGS', '') + ' -g0').strip(),  # takes half the time
        MMCV_WITH_OPS='1', FORCE_CUDA='1' if ops == 'cuda' else '0', **hidden)


def jobs() -> int:
    """Return how many compilers to run: one per core, if each has about 1.5 GB of memory."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    most = max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9)))
    return int(os.environ.get('MAX_JOBS') or most)


def ops_to_build(setup: Setup) -> str:
    """Return 'cuda' where torch sees a GPU and nvcc is of its CUDA's major version, else 'cpu'."""
    cuda = re.search(r'cuda: (\d+)', setup.python(CUDA_CHECK)[1])
    if cuda is None:
        return 'cpu'
    nvcc = stacks.nvcc()
    if nvcc and f'release {cuda.group(1)}.' in setup.run(nvcc, '--version')[1]:
        return 'cuda'
    print(f'      note: there is a GPU, but no nvcc of CUDA {cuda.group(1)}, so mmcv gets CPU ops '
          'and the GPU stays unused.\n      Once that toolkit is installed: '
          f'{setup.stack.command} --repair', flush=True)
    return 'cpu'


def use_opencv_that_loads(setup: Setup) -> None:
    """Replace opencv-python, which needs libGL, by its headless variant where that is missing."""
    lacks = 'cannot open shared object'
    if lacks in setup.python('import cv2')[1]:
        setup.pip('install', '--force-reinstall', '--no-deps', 'opencv-python-headless')
        output = setup.python('import cv2')[1]
        if lacks in output:
            raise SetupError(f'opencv does not load: {output.strip().splitlines()[-1]}. Install '
                             'the system libraries: sudo apt-get install -y libgl1 libglib2.0-0')


def install_rest(setup: Setup) -> str:
    """Install the other packages, and this one in editable form."""
    setup.pip('install', '--no-build-isolation', '--editable', f'.[{setup.stack.key},dev]')
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
