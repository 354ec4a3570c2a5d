"""Steps of the set-up. Each returns a remark on how it was done, or raises SetupError."""
import csv
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from bootstrap.facts import gather
from bootstrap.remedies import DISK_GB, explain_pip
from bootstrap.stacks import ROOT, Stack, families

BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')


class SetupError(Exception):
    """What is wrong and what to do about it, in one paragraph."""


def run(stack: Stack, *command: str, **variables: str) -> int:
    """Run a command in the environment, its output on the terminal; return its exit status."""
    # Temporary files of its own: /tmp may be small, and would keep what a kill leaves behind.
    env = {**stack.variables(), 'TMPDIR': str(stack.scratch), **variables}
    # The child inherits the lock, which stays held until the last process has ended.
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, env=env,
                             start_new_session=True, close_fds=False)
    try:
        return child.wait()
    except BaseException:  # the group, since compilers run below pip; pip tidies up
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGINT)
            child.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        raise


def pip(stack: Stack, *args: str, **variables: str) -> None:
    """Run pip in the environment.

    Raises:
        SetupError: it failed.
    """
    command = [str(stack.python), '-m', 'pip', *args, '--no-input', '--log', str(stack.log)]
    if args[0] == 'install':
        command += ['--constraint', str(stack.constraints)]
    start = stack.log.stat().st_size if stack.log.exists() else 0
    if run(stack, *command, **variables):
        reason = explain_pip(stack.log.read_bytes()[start:].decode(errors='replace'))
        raise SetupError(f'pip failed: {reason}. Then run the same command again, which repeats only '
                         "what is missing. All of pip's output is in setup.log of the environment.")


def probe(stack: Stack, name: str, **variables: str) -> dict[str, Any]:
    """Import a module in the environment; return what probe.py reports."""
    return gather(str(stack.python), [name], {**stack.variables(), **variables}).modules[name]


# --- what comes first -----------------------------------------------------------------------------


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
    check = ('import sys, venv, ensurepip; '
             'sys.exit("{}.{}".format(*sys.version_info) not in sys.argv)')
    for python in candidates:
        with suppress(OSError):
            if subprocess.run([python, '-c', check, *stack.pythons],
                              stderr=subprocess.DEVNULL).returncode == 0:
                return python
    first = stack.pythons[0]
    raise SetupError(
        f'the {stack.name} stack needs Python {" or ".join(stack.pythons)}, with its modules venv '
        f'and ensurepip: {f"{given} is not one" if given else "none was found"}. Install one (for '
        f'example `sudo apt-get install -y python{first}-venv` or `pyenv install {first}`) and '
        f'name it: `{stack.command} --python /path/to/python{first}`.')


def refuse(stack: Stack) -> None:
    """Refuse an environment that cannot be completed, and a disk that is too small for one.

    Raises:
        SetupError: what is in the way, and what to do.
    """
    folder, installed = stack.folder, stack.installed()
    free = shutil.disk_usage(ROOT).free / 1e9
    others = [name for key, names in families(installed).items() for name in names
              if key != stack.family]
    problem = ''
    if stack.venv_version() not in ('', *stack.pythons):
        problem = (f'{folder} holds Python {stack.venv_version()}, which the {stack.name} stack does '
                   f'not exist for. Remove it (`rm -rf {folder}`)')
    elif others:
        problem = (f'{folder} holds packages of the other family ({", ".join(others)}), which share '
                   f'their files with those of {stack.name}. Move it away (`mv {folder} {folder}-old`)')
    elif 'torch' not in installed and free < DISK_GB:
        problem = (f'{free:.1f} GB are free in {ROOT}, about {DISK_GB} GB are needed. Free some space '
                   'or clone the project to a larger disk')
    if problem:
        raise SetupError(f'{problem} and run the same command again.')


# --- steps ----------------------------------------------------------------------------------------


def forget_damaged(stack: Stack) -> list[str]:
    """Remove the entries of half-installed packages, so that pip installs them again.

    pip writes the list of a package's files last.
    """
    site, damaged = stack.site_packages(), []
    for info in site.glob('*.dist-info'):
        record = info / 'RECORD'
        if not record.exists() or not all(
                row[0].endswith('.pyc') or (site / row[0]).exists()
                for row in csv.reader(record.read_text().splitlines()) if row):
            damaged.append(info)
    for path in [*damaged, *site.glob('~*')]:
        shutil.rmtree(path)
    return [path.name.partition('-')[0] for path in damaged]


def make_venv(stack: Stack, python: str) -> str:
    """Make a virtual environment with a working pip; keep what is in an existing one."""
    damaged = forget_damaged(stack)
    if stack.python.exists() and run(stack, str(stack.python), '-m', 'pip', '--version') == 0:
        return 'to be repaired: ' + ', '.join(damaged) if damaged else 'already there'
    for link in stack.venv.glob('bin/python*'):
        link.unlink()  # venv keeps links that lead nowhere
    if run(stack, python, '-m', 'venv', str(stack.venv)):
        raise SetupError(f'the virtual environment cannot be made. Remove {stack.folder} with '
                         f'`rm -rf {stack.folder}` and run the same command again.')
    return f'Python {stack.venv_version()}'


def install_torch(stack: Stack) -> str:
    """Install the build tools, then torch and torchvision together: they have to match."""
    pip(stack, 'install', '--quiet', *stack.pinned(*BUILD_TOOLS))
    requirements = stack.pinned('torch', 'torchvision')
    pip(stack, 'install', *requirements)
    return ', '.join(requirements)


def install_mmcv(stack: Stack) -> str:
    """Get mmcv with ops that work in this torch: keep the present one, take pip's, or build it.

    A wheel does not say which torch it was built for.
    """
    stack.ops.unlink(missing_ok=True)  # it hides the GPU
    wanted = choose_ops(stack)
    hidden = {} if wanted == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}  # else it builds for CUDA
    is_present = stack.installed().get(stack.mmcv) == stack.pins[stack.mmcv]
    for way in ('already there', 'installed', 'compiled')[not is_present:]:
        if way != 'already there':
            reinstall_mmcv(stack, wanted, compiled=way == 'compiled', **hidden)
        use_opencv_that_loads(stack)
        record = probe(stack, 'mmcv.ops', **hidden)
        ops = 'cpu' if record.get('cuda') == 'not available' else 'cuda'
        if 'error' not in record and ops in ('cuda', wanted):
            stack.ops.write_text(ops)
            return f'{way}, {ops} ops'
    raise SetupError('mmcv was compiled, but its ops do not work: '
                     f'{record.get("error", "they are for the CPU only")}. `python3 '
                     f'tools/doctor.py --python {stack.folder}/bin/python` may know the reason.')


def reinstall_mmcv(stack: Stack, ops: str, *, compiled: bool, **variables: str) -> None:
    """Replace mmcv by a wheel or a new build; pip's cache may hold a build for another torch."""
    name = stack.mmcv
    if name in stack.installed():
        pip(stack, 'uninstall', '-y', name)
    options = ('--no-binary', name) if compiled else ()
    pip(stack, 'install', '--no-cache-dir', '--no-build-isolation', *stack.pinned(name), *options,
        **variables, MMCV_WITH_OPS='1', FORCE_CUDA=str(int(ops == 'cuda')), MAX_JOBS=str(count_jobs()),
        CFLAGS=(os.environ.get('CFLAGS', '') + ' -g0').strip())  # takes half the time


def count_jobs() -> int:
    """Return how many compilers to run: one per core, if each has about 1.5 GB of memory."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    most = max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9)))
    return int(os.environ.get('MAX_JOBS') or most)


def choose_ops(stack: Stack) -> str:
    """Return 'cuda' where torch sees a GPU and nvcc is of its CUDA's major version, else 'cpu'."""
    torch = probe(stack, 'torch')
    if torch.get('gpu') is None:
        return 'cpu'
    major = torch['cuda'].partition('.')[0]
    if torch['nvcc'].startswith(f'{major}.'):
        return 'cuda'
    print(f'      note: there is a GPU, but no nvcc of CUDA {major}, so mmcv gets CPU ops and the '
          f'GPU stays unused.\n      Once that toolkit is installed: {stack.command} --repair',
          flush=True)
    return 'cpu'


def use_opencv_that_loads(stack: Stack) -> None:
    """Replace opencv-python, which needs libGL, by its headless variant where that is missing."""
    if 'cannot open shared object' in probe(stack, 'cv2').get('error', ''):
        pip(stack, 'install', '--force-reinstall', '--no-deps', 'opencv-python-headless')


def install_rest(stack: Stack) -> str:
    """Install the other packages, and this one in editable form."""
    pip(stack, 'install', '--quiet', '--no-build-isolation', '--editable', f'.[{stack.key},dev]',
        PYTHONWARNINGS='ignore')  # setuptools' advice to the author of setup.py
    use_opencv_that_loads(stack)
    return admit_mmcv(stack) if stack.key == 'upstream-newest' else ''


def admit_mmcv(stack: Stack) -> str:
    """Raise the bound of mmdet and mmseg, which refuse this mmcv on import.

    Both name the first version that they refuse in a constant of their `__init__.py`.
    """
    version = stack.pins[stack.mmcv]
    for package in ('mmdet', 'mmseg'):
        path = stack.site_packages() / package / '__init__.py'
        text = re.sub(rf"^(mmcv_maximum_version|MMCV_MAX) = '{version}'$", rf"\1 = '{version}.1'",
                      path.read_text(), flags=re.MULTILINE)
        path.unlink()  # it may be a link into a cache
        path.write_text(text)
    return f'mmdet and mmseg accept mmcv {version}'
