"""The steps of the set-up and what they refuse. A step returns a remark on how it was done."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

from bootstrap import children, stack
from bootstrap.children import Runner, SetupError
from bootstrap.project_env import (BUILD_TOOLS, BUILT_FOR, EXTRAS, LOG, PYTHON, VENV, has_pinned,
                                   installed, site_packages, venv_version)

MMCV = 'onedl-mmcv'

# mmcv.ops loads, computes, and says whether it was built for CUDA.
OPS_CHECK = '''
import torch
from mmcv.ops import get_compiling_cuda_version, nms
boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
assert len(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1]) == 1
print('ops:', 'cpu' if get_compiling_cuda_version() == 'not available' else 'cuda')
'''
CUDA_CHECK = '''
import torch
print('cuda:', torch.version.cuda if torch.cuda.is_available() else 'none')
'''
HEADER_CHECK = '''
import sysconfig
open(sysconfig.get_paths()['include'] + '/Python.h').close()
'''


# --- refusals -------------------------------------------------------------------------------------


def version_text(version: Tuple[int, ...]) -> str:
    """3.11.7 for (3, 11, 7)."""
    return '.'.join(str(part) for part in version[:3])


def is_supported(version: Tuple[int, ...]) -> bool:
    """Whether the stack exists for a Python version."""
    low, high = stack.SUPPORTED
    return low <= tuple(version[:2]) <= high


def other_pythons() -> List[str]:
    """Supported Pythons of this machine, by the name to call them with."""
    low, high = stack.SUPPORTED
    names = ['python3.{}'.format(minor) for minor in range(high[1], low[1] - 1, -1)]
    return [name for name in names if shutil.which(name)
            and subprocess.call([name, '-c', 'pass'], stderr=subprocess.DEVNULL) == 0]


def refuse_python() -> None:
    """An interpreter that the stack does not exist for cannot make the environment."""
    if is_supported(sys.version_info) and (not venv_version() or is_supported(venv_version())):
        return
    low, high = ('3.{}'.format(version[1]) for version in stack.SUPPORTED)
    if is_supported(sys.version_info):
        raise SetupError('.venv holds Python {}, but {} to {} is needed. Remove it with `rm -rf '
                         '.venv` and run the same command again.'.format(
                             version_text(venv_version()), low, high))
    found = other_pythons()
    have = 'found here: ' + ', '.join(found) if found else 'none is on the PATH of this machine'
    raise SetupError('Python {} ({}) is not supported: Python {} to {} is needed ({}). Name it '
                     'instead of python3: `{} {}`.'.format(
                         version_text(sys.version_info), sys.executable, low, high, have,
                         found[0] if found else 'python3.11', sys.argv[0]))


def refuse_upstream() -> None:
    """Upstream packages in .venv share their files with ours."""
    names = stack.families(installed())
    pip = '.venv/bin/python -m pip'
    if len(names) == 2:
        text, remedy = stack.both_families(names, pip, 'python3 tools/environment.py')
        raise SetupError('{}. Mend it with:\n{}'.format(text, remedy))
    if 'upstream' in names:
        raise SetupError(
            '.venv holds the upstream family of the OpenMMLab stack ({}), and this set-up makes '
            'an environment with the OneDL family; the two cannot be mixed. Either move it away '
            '(`mv .venv .venv-upstream`) and run the same command again, or stay with upstream: '
            '`{} install -e .` and run the tools with .venv/bin/python.'.format(
                ', '.join(names['upstream']), pip))


def refuse_missing_venv_module() -> None:
    """Debian and Ubuntu ship Python without ensurepip."""
    if importlib.util.find_spec('venv') and importlib.util.find_spec('ensurepip'):
        return
    version = '{}.{}'.format(*sys.version_info[:2])
    raise SetupError('Python {} at {} has no venv and ensurepip modules, so it cannot make a '
                     'virtual environment. Install them with: sudo apt-get install -y '
                     'python{}-venv'.format(version, sys.executable, version))


def refuse_small_disk() -> None:
    """Better before the download than in the middle of it."""
    free = shutil.disk_usage(str(stack.ROOT)).free / 1e9
    if free < children.DISK_GB:
        raise SetupError('{:.1f} GB are free in {}, about {} GB are needed. Free some space, or '
                         'clone the project to a larger disk.'.format(
                             free, stack.ROOT, children.DISK_GB))


def refuse_missing_compiler(runner: Runner) -> None:
    """mmcv has to be compiled where no wheel fits."""
    if stack.compiler() is None:
        raise SetupError('no ready-made wheel of mmcv {} fits this Python, and there is no C++ '
                         'compiler to build it with (looked for $CXX, c++, g++ and clang++). '
                         'Install one with: sudo apt-get install -y g++ python3-dev'.format(
                             stack.pins()[MMCV]))
    if runner.python(HEADER_CHECK)[0]:
        raise SetupError('mmcv has to be compiled, and the header Python.h of this Python is '
                         'missing. Install it with: sudo apt-get install -y python3-dev '
                         '(python{}.{}-dev for that version)'.format(*venv_version()[:2]))


def refuse_all() -> None:
    """What can be refused before anything is written."""
    if not (stack.ROOT / 'setup.py').exists():
        raise SetupError('{} is not a checkout of this project (it has no setup.py). Run the '
                         'command from a clone of the repository.'.format(stack.ROOT))
    refuse_python()
    refuse_upstream()


# --- the environment and torch --------------------------------------------------------------------


def is_whole(record: Path) -> bool:
    """Whether all files of an installed distribution are there; pip writes the list last."""
    if not record.exists():
        return False
    site = record.parent.parent
    lines = record.read_text(encoding='utf-8').splitlines()
    files = (line.rsplit(',', 2)[0].strip('"') for line in lines if line)
    return all(name.endswith('.pyc') or (site / name).exists() for name in files)


def forget_damaged() -> List[str]:
    """Drops the entries of half-installed packages, so that pip installs them again."""
    damaged = [info for info in site_packages().glob('*.dist-info')
               if not is_whole(info / 'RECORD')]
    for path in damaged + [path for path in site_packages().glob('~*') if path.is_dir()]:
        shutil.rmtree(str(path))
    return [path.name.split('-')[0] for path in damaged]


def make_venv(runner: Runner) -> str:
    """A virtual environment with a working pip; what is in an existing one stays."""
    damaged = forget_damaged()
    if PYTHON.exists() and runner.run([str(PYTHON), '-m', 'pip', '--version'])[0] == 0:
        return 'to be repaired: ' + ', '.join(damaged) if damaged else 'already there'
    refuse_missing_venv_module()
    base = getattr(sys, '_base_executable', None) or sys.executable
    for link in VENV.glob('bin/python*'):
        link.unlink()  # venv keeps links that lead nowhere
    status, output = runner.run([base, '-m', 'venv', str(VENV)])
    if status:
        tail = '\n'.join(output.strip().splitlines()[-12:])
        raise SetupError('the virtual environment cannot be created or repaired. Remove it with '
                         '`rm -rf .venv` and run the same command again.', tail)
    return 'created'


def install_build_tools(runner: Runner) -> str:
    """What a build of mmcv needs, in versions that are known to work."""
    runner.pip('install', *map(stack.pinned, BUILD_TOOLS))
    return ''


def look_for_mmcv(runner: Runner) -> str:
    """Fails for lack of a compiler before gigabytes are downloaded, not after."""
    if MMCV in installed():
        return 'mmcv is installed'
    status, _ = runner.try_pip('install', '--dry-run', '--no-deps', '--no-cache-dir',
                               '--only-binary', MMCV, stack.pinned(MMCV))
    if status == 0:
        return 'found'
    refuse_missing_compiler(runner)
    minutes = max(2, 14 // jobs())
    return 'none: mmcv will be compiled with {}, about {} min with {} jobs'.format(
        stack.compiler(), minutes, jobs())


def install_torch(runner: Runner) -> str:
    """torch and torchvision together: they have to match."""
    if not has_pinned('torch'):
        refuse_small_disk()
    runner.pip('install', stack.pinned('torch'), stack.pinned('torchvision'))
    return 'torch {torch}, torchvision {torchvision}'.format(**installed())


def install_rest(runner: Runner) -> str:
    """The other packages, and this one in editable form."""
    runner.pip('install', '--no-build-isolation', '--editable', EXTRAS)
    use_opencv_that_loads(runner)
    return ''


# --- mmcv -----------------------------------------------------------------------------------------


def jobs() -> int:
    """Parallel compilers: one per core, if each has about 1.5 GB of memory."""
    if os.environ.get('MAX_JOBS', '').isdigit():
        return int(os.environ['MAX_JOBS'])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(cores or 1, int(memory / 1.5e9)))


def ops_of_mmcv(runner: Runner) -> str:
    """'cuda' or 'cpu' for compiled ops that load with this torch, '' if they do not."""
    use_opencv_that_loads(runner)
    status, output = runner.python(OPS_CHECK)
    return re.search(r'ops: (\w+)', output).group(1) if status == 0 else ''


def ops_to_build(runner: Runner) -> str:
    """'cuda' where torch sees a GPU and nvcc is of its CUDA's major version, else 'cpu'."""
    _, output = runner.python(CUDA_CHECK)
    cuda = re.search(r'cuda: (\d+)', output)
    if cuda is None:
        return 'cpu'
    nvcc = stack.nvcc()
    _, output = runner.run([nvcc, '--version']) if nvcc else (1, '')
    release = re.search(r'release (\d+)', output)
    if release and release.group(1) == cuda.group(1):
        return 'cuda'
    print('      note: there is a GPU, but no nvcc of CUDA {}, so mmcv gets CPU ops and the GPU '
          'stays unused.\n      Once that toolkit is installed: python3 tools/environment.py '
          '--repair'.format(cuda.group(1)), flush=True)
    return 'cpu'


def use_opencv_that_loads(runner: Runner) -> None:
    """opencv-python needs libGL; its headless variant, with the same files, does not."""
    status, output = runner.python('import cv2')
    if status and 'cannot open shared object' in output:
        runner.pip('install', '--force-reinstall', '--no-deps', 'opencv-python-headless')
        status, output = runner.python('import cv2')
    if status and 'cannot open shared object' in output:
        raise SetupError('opencv does not load: {}. Install the system libraries with: sudo '
                         'apt-get install -y libgl1 libglib2.0-0'.format(
                             output.strip().splitlines()[-1]))


def build_variables(ops: str) -> Dict[str, str]:
    """Environment of mmcv's build; without -g0 it takes twice as long."""
    variables = {
        'CFLAGS': (os.environ.get('CFLAGS', '') + ' -g0').strip(),
        'CXX': os.environ.get('CXX') or stack.compiler() or 'c++',
        'MAX_JOBS': str(jobs()),
        'MMCV_WITH_OPS': '1',
        'FORCE_CUDA': '1' if ops == 'cuda' else '0',
    }
    if ops == 'cpu':
        variables['CUDA_VISIBLE_DEVICES'] = ''  # mmcv builds for CUDA as soon as torch sees a GPU
    return variables


def mmcv_from_wheel(runner: Runner, ops: str) -> str:
    """Installs a wheel and returns its ops, '' if there is none that fits.

    One built for another torch, or without the CUDA ops, is removed again. pip's cache is left
    out throughout: its key for mmcv does not know of torch.
    """
    status, _ = runner.try_pip('install', '--no-cache-dir', '--only-binary', MMCV,
                               stack.pinned(MMCV))
    there = ops_of_mmcv(runner) if status == 0 else ''
    if there in ('cuda', ops):
        return there
    if MMCV in installed():
        runner.pip('uninstall', '-y', MMCV)
    return ''


def mmcv_from_source(runner: Runner, ops: str) -> None:
    """Compiles mmcv for the installed torch."""
    refuse_missing_compiler(runner)
    print('      no wheel fits: compiling the {} ops'.format(ops), flush=True)
    runner.pip('install', '-v', '--no-build-isolation', '--no-cache-dir', '--no-binary', MMCV,
               stack.pinned(MMCV), env=build_variables(ops))
    if not ops_of_mmcv(runner):
        raise SetupError('mmcv was compiled, but its ops do not load; the reason is at the end of '
                         '{}. Remove .venv (`rm -rf .venv`) and run the same command again.'
                         .format(LOG))


def mmcv_that_is_there(runner: Runner, ops: str) -> str:
    """Ops of the installed mmcv, '' if it has to be replaced: another torch, version or device."""
    known = BUILT_FOR.read_text(encoding='utf-8').split() if BUILT_FOR.exists() else []
    if not has_pinned(MMCV) or known[:1] not in ([], [installed()['torch']]):
        return ''
    there = ops_of_mmcv(runner)
    return there if there in ('cuda', ops) else ''


def install_mmcv(runner: Runner) -> str:
    """mmcv with ops for this torch: the one that is there, a wheel, or a build."""
    ops = ops_to_build(runner)
    there = mmcv_that_is_there(runner, ops)
    if there:
        return record_mmcv(there, 'already there')
    if MMCV in installed():
        runner.pip('uninstall', '-y', MMCV)
    there = mmcv_from_wheel(runner, ops)
    if there:
        return record_mmcv(there, 'from a wheel')
    mmcv_from_source(runner, ops)
    return record_mmcv(ops, 'compiled')


def record_mmcv(ops: str, how: str) -> str:
    """Notes which torch the ops fit, since mmcv's own version does not tell."""
    BUILT_FOR.write_text('{} {}\n'.format(installed()['torch'], ops), encoding='utf-8')
    return '{}, {} ops'.format(how, ops)
