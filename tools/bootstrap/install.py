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

from bootstrap import stacks
from bootstrap.facts import Facts, gather
from bootstrap.stacks import ROOT, Stack

DISK_GB = 12
BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')

# Part of pip's output -> what it means and what to do.
PIP_FAILURES = {
    r'No space left on device': f'the disk is full: about {DISK_GB} GB are needed in this folder, '
    'and pip keeps downloads in ~/.cache/pip',
    r'Python\.h: No such file': 'Python.h is missing: sudo apt-get install -y python3-dev',
    r'Killed signal|[Oo]ut of memory|[Cc]annot allocate memory': 'the compiler ran out of memory: '
    'put MAX_JOBS=1 before the command',
    r'connection broken by|Max retries exceeded|Connection (?:refused|reset)|Read timed out|'
    r'(?:NewConnection|NameResolution|Proxy|Timeout|SSL)Error|Temporary failure in name': 'the '
    'package index cannot be reached: check the network, the proxy (HTTPS_PROXY), the certificates '
    '(PIP_CERT) and the index (`pip config list`, PIP_INDEX_URL)',
    r'(?:No matching distribution found for|requested \(constraint\)) [^\s(]+': 'the package index '
    'was reached, but lacks a package for this Python and platform: check that `pip config list` '
    'and PIP_INDEX_URL name a complete index and that PIP_CONSTRAINT is not set',
}


class SetupError(Exception):
    """What is wrong and what to do about it, in one paragraph."""


class Setup:
    """One set-up: runs commands and imports modules in the environment of a stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.log = stack, stack.venv / 'setup.log'
        self.scratch = stack.venv / 'setup-tmp'  # /tmp would keep what a kill leaves behind

    def run(self, *command: str, **variables: str) -> int:
        """Run a command, its output on the terminal; return its exit status."""
        env = {**self.stack.variables(), 'TMPDIR': str(self.scratch), **variables}
        # It inherits the lock, which is so held until the last child has ended.
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

    def pip(self, *args: str, **variables: str) -> None:
        """Run pip inside the environment.

        Raises:
            SetupError: it failed.
        """
        command = [str(self.stack.python), '-m', 'pip', *args, '--no-input', '--log', str(self.log)]
        if args[0] == 'install':
            command += ['--constraint', str(self.stack.constraints)]
        start = self.log.stat().st_size if self.log.exists() else 0
        if self.run(*command, **variables):
            raise pip_failure(self.log.read_bytes()[start:].decode(errors='replace'))

    def probe(self, *names: str, **variables: str) -> Facts:
        """Import modules in the environment."""
        return gather(str(self.stack.python), names, {**self.stack.variables(), **variables})


def pip_failure(output: str) -> SetupError:
    """Return the error for what a failed pip wrote into its log."""
    reason = 'its message is above'
    if 'Building wheel' in output and stacks.compiler() is None:
        reason = ('there is no C++ compiler ($CXX or c++) for a package without a wheel that fits: '
                  'sudo apt-get install -y g++ python3-dev')
    reason = next((text for pattern, text in PIP_FAILURES.items() if re.search(pattern, output)),
                  reason)
    return SetupError(f'pip failed: {reason}. Then run the same command again, which repeats only '
                      "what is missing. All of pip's output is in setup.log of the environment.")


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
    """Refuse an environment that cannot be completed, and a disk that is too small for one."""
    folder = stack.folder
    if stack.venv_version() not in ('', *stack.pythons):
        raise SetupError(f'{folder} holds Python {stack.venv_version()}, which the {stack.name} '
                         f'stack does not exist for. Remove it with `rm -rf {folder}` and run the '
                         'same command again.')
    installed = stack.installed()
    others = [name for key, names in stacks.families(installed).items()
              if key != stack.family for name in names]
    if others:
        raise SetupError(f'{folder} holds packages of the other family ({", ".join(others)}), which '
                         f'share their files with those of {stack.name}. Move it away (`mv {folder} '
                         f'{folder}-old`) and run the same command again.')
    free = shutil.disk_usage(ROOT).free / 1e9
    if 'torch' not in installed and free < DISK_GB:
        raise SetupError(f'{free:.1f} GB are free in {ROOT}, about {DISK_GB} GB are needed. Free '
                         'some space, or clone the project to a larger disk.')


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
    return [path.name.split('-')[0] for path in damaged]


def make_venv(setup: Setup, python: str) -> str:
    """Make a virtual environment with a working pip; keep what is in an existing one."""
    stack = setup.stack
    damaged = forget_damaged(stack)
    if stack.python.exists() and setup.run(str(stack.python), '-m', 'pip', '--version') == 0:
        return 'to be repaired: ' + ', '.join(damaged) if damaged else 'already there'
    for link in stack.venv.glob('bin/python*'):
        link.unlink()  # venv keeps links that lead nowhere
    if setup.run(python, '-m', 'venv', str(stack.venv)):
        raise SetupError(f'the virtual environment cannot be made. Remove {stack.folder} with '
                         f'`rm -rf {stack.folder}` and run the same command again.')
    return f'Python {stack.venv_version()}'


def install_torch(setup: Setup) -> str:
    """Install the build tools, then torch and torchvision together: they have to match."""
    stack = setup.stack
    setup.pip('install', '--quiet', *map(stack.pinned, BUILD_TOOLS))
    setup.pip('install', stack.pinned('torch'), stack.pinned('torchvision'))
    return 'torch {torch}, torchvision {torchvision}'.format(**stack.installed())


def install_mmcv(setup: Setup) -> str:
    """Get mmcv with ops that work in this torch: keep the present one, take pip's, or build it.

    A wheel does not say which torch it was built for, and neither does a build in pip's cache.
    """
    stack, name = setup.stack, setup.stack.mmcv
    (stack.venv / 'mmcv-ops').unlink(missing_ok=True)  # it hides the GPU
    wanted = ops_to_build(setup)
    hidden = {} if wanted == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}  # else it builds for CUDA
    install = ('install', '--no-cache-dir', '--no-build-isolation', stack.pinned(name))
    for how in ('already there', 'installed', 'compiled'):
        if how == 'already there':
            if stack.installed().get(name) != stack.pins[name]:
                continue
        else:
            if name in stack.installed():
                setup.pip('uninstall', '-y', name)
            setup.pip(
                *install, *(['--no-binary', name] if how == 'compiled' else []), **hidden,
                CFLAGS=(os.environ.get('CFLAGS', '') + ' -g0').strip(),  # takes half the time
                MMCV_WITH_OPS='1', MAX_JOBS=str(jobs()), FORCE_CUDA=str(int(wanted == 'cuda')))
        use_opencv_that_loads(setup)
        record = setup.probe('mmcv.ops', **hidden).modules['mmcv.ops']
        ops = 'cpu' if record.get('cuda') == 'not available' else 'cuda'
        if 'error' not in record and ops in ('cuda', wanted):
            (stack.venv / 'mmcv-ops').write_text(ops)
            return f'{how}, {ops} ops'
    raise SetupError('mmcv was compiled, but its ops do not work: '
                     f'{record.get("error", "they are for the CPU only")}. `python3 '
                     f'tools/doctor.py --python {stack.folder}/bin/python` may know the reason.')


def jobs() -> int:
    """Return how many compilers to run: one per core, if each has about 1.5 GB of memory."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    most = max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5e9)))
    return int(os.environ.get('MAX_JOBS') or most)


def ops_to_build(setup: Setup) -> str:
    """Return 'cuda' where torch sees a GPU and nvcc is of its CUDA's major version, else 'cpu'."""
    facts = setup.probe('torch')
    if facts.detail('torch', 'gpu') is None:
        return 'cpu'
    major = facts.detail('torch', 'cuda').split('.')[0]
    if stacks.nvcc_version().startswith(f'{major}.'):
        return 'cuda'
    print(f'      note: there is a GPU, but no nvcc of CUDA {major}, so mmcv gets CPU ops and the '
          'GPU stays unused.\n      Once that toolkit is installed: '
          f'{setup.stack.command} --repair', flush=True)
    return 'cpu'


def use_opencv_that_loads(setup: Setup) -> None:
    """Replace opencv-python, which needs libGL, by its headless variant where that is missing."""
    if 'cannot open shared object' in (setup.probe('cv2').detail('cv2', 'error') or ''):
        setup.pip('install', '--force-reinstall', '--no-deps', 'opencv-python-headless')


def install_rest(setup: Setup) -> str:
    """Install the other packages, and this one in editable form."""
    setup.pip('install', '--quiet', '--no-build-isolation', '--editable', f'.[{setup.stack.key},dev]')
    use_opencv_that_loads(setup)
    return admit_mmcv(setup.stack)


def admit_mmcv(stack: Stack) -> str:
    """Raise the bound of mmdet and mmseg where they refuse the stack's mmcv on import.

    Both name the first version that they refuse in a constant of their `__init__.py`.
    """
    version, raised = stack.pins[stack.mmcv], []
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
