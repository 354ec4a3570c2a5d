"""Known failures of imports and of pip, what they mean, and what repairs them."""
import os
import re
import shutil

from bootstrap.facts import Facts
from bootstrap.stacks import ROOT, STACKS, UPSTREAM, families

DISK_GB = 12

# Part of `module: error` -> what it means, and the remedy: see `fill_in`.
IMPORT_FAILURES = {
    r'lib(GL|gthread|glib)[\w.-]*: cannot open': (
        'opencv-python needs system libraries (libGL.so.1) that are not installed',
        'sudo apt-get install -y libgl1 libglib2.0-0\n'
        'or, without root: {pip} install --force-reinstall --no-deps {headless}'),
    r'^torch: .*(undefined symbol|\.so[.\d]*: cannot open)': (
        'torch does not fit the CUDA libraries that are installed with it, or they are incomplete',
        '{pip} uninstall -y torch torchvision && {pip} install {torch} {torchvision}'),
    r"torchvision::nms|Couldn't load custom C\+\+ ops|partially initialized module .torchvision"
    r"|^torchvision: .*(undefined symbol|libc10|libtorch|libcudart|No module named 'triton)": (
        'torchvision belongs to another torch, in version or in flavour (CPU or CUDA)',
        '{pip} install --force-reinstall --no-deps {torchvision}'),
    r'implementation for device cuda': (
        'mmcv has CPU ops only: nms, RoIAlign and others fail on the GPU', '{mmcv}'),
    r'undefined symbol|libc10|libtorch|libcudart|no kernel image': (
        'its compiled part was built for another torch or GPU', '{mmcv}'),
    r"No module named 'mmcv._ext'": ('mmcv is here without its compiled ops', '{mmcv}'),
    r"No module named 'pkg_resources'": (
        'setuptools 82 and later have no pkg_resources', '{pip} install "setuptools>=80,<82"'),
    r'Numpy is not available': (
        'this torch was built for numpy 1 and cannot use numpy 2', '{pip} install {numpy_opencv}'),
    r'^cv2: .*(_ARRAY_API|multiarray|NumPy 1|numpy\.core)': (
        'opencv was built for another numpy', '{pip} install {numpy_opencv}'),
    r'_ARRAY_API not found|multiarray failed to import|compiled using NumPy 1': (
        'a compiled package was built for numpy 1, and numpy 2 is installed',
        '{pip} install "numpy<2"'),
    r'MMCV==\S+ is used but incompatible': (
        'mmdet and mmseg of the upstream family want mmcv >=2.0.0,<2.2.0',
        'see "Newest of upstream" in docs/stacks.md, or make the environment that has it done: '
        '{environment}'),
    r"^xvit_mm: (?!.*No module named '(?!xvit_mm)).* in \S+:\d+$": (
        'this package itself fails',
        f'git -C {ROOT} status --short xvit_mm   (lists changed and lost files; `git restore xvit_mm` '
        'brings them back)\nor, where nothing is changed, the tested versions: {pip} install {tested}'),
}
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


def explain_import(module: str, error: str) -> tuple[str, str] | None:
    """Return meaning and remedy template of a known import failure, None if it is not known."""
    return next((known for pattern, known in IMPORT_FAILURES.items()
                 if re.search(pattern, f'{module}: {error}', re.DOTALL)), None)


def explain_pip(output: str) -> str:
    """Return what the output of a failed pip means."""
    default = 'its message is above'
    if 'Building wheel' in output and not has_compiler():
        default = ('there is no C++ compiler ($CXX or c++) for a package without a wheel that fits: '
                   'sudo apt-get install -y g++ python3-dev')
    return next((text for pattern, text in PIP_FAILURES.items() if re.search(pattern, output)),
                default)


def has_compiler() -> bool:
    """Whether there is the C++ compiler that a build would use."""
    return shutil.which((os.environ.get('CXX') or 'c++').split(' ')[0]) is not None


def fill_in(template: str, facts: Facts) -> str:
    """Return the remedy of a template; in the project's own environment one command repairs all."""
    if facts.project_stack:
        return re.sub(r'\{.*', facts.project_stack.command + ' --repair', template)
    found, stack = facts.distributions, facts.stack or STACKS['onedl']
    torch, opencv = found.get('torch', ''), found.get('opencv-python', '*')
    fits_torch = STACKS['upstream' if re.match(r'1\.|2\.[012]\.', torch) else 'onedl']
    variants = {'opencv-python', 'opencv-python-headless'} & found.keys() or {'opencv-python'}
    return template.format(
        pip=f'{facts.python} -m pip',
        torch='torch==' + torch.partition('+')[0] if torch else 'torch',
        torchvision=match_torchvision(torch),
        numpy_opencv=' '.join(fits_torch.pinned('numpy', *sorted(variants))),
        headless=f'"opencv-python-headless=={opencv}"',
        mmcv=build_mmcv(facts),
        tested=' '.join(stack.pinned('torch', 'torchvision', 'numpy', stack.packages['mmengine'])),
        environment=stack.command)


def match_torchvision(torch: str) -> str:
    """Return the torchvision that fits a torch: their minor versions run in step."""
    found = re.match(r'2\.(\d+)\.\d+(?:\+(\w+))?', torch)
    if found is None:
        return 'torchvision'
    minor, flavour = found.groups()
    index = f' --index-url https://download.pytorch.org/whl/{flavour}' if flavour else ''
    return f'"torchvision==0.{int(minor) + 15}.*"{index}'


def install_module(module: str, facts: Facts) -> str:
    """Return the template of the command that installs a missing module."""
    if module in UPSTREAM and facts.stack is None:
        return ''  # the finding on the family has the command
    if module == 'mmcv':
        return '{mmcv}'
    given = {'torchvision': '{torchvision}', 'cv2': '{numpy_opencv}',
             'xvit_mm': f'--no-deps -e {ROOT}', **(facts.stack.packages if facts.stack else {})}
    return '{pip} install ' + given.get(module, module)


def build_mmcv(facts: Facts) -> str:
    """Build mmcv for the torch that is installed; never from pip's cache, which ignores torch."""
    stack, pip = facts.stack or STACKS['onedl'], f'{facts.python} -m pip'
    torch, first = facts.modules['torch'], ''
    if not has_compiler():
        first = 'sudo apt-get install -y g++ python3-dev && '
    if torch.get('gpu') and not torch['nvcc']:
        first += f'install the CUDA {torch["cuda"]} toolkit (no nvcc is found), then '
    if 'mmcv-lite' in facts.distributions:
        first += f'{pip} uninstall -y mmcv-lite && '
    return (f'{first}{"FORCE_CUDA=1 " * bool(torch.get("gpu"))}CFLAGS=-g0 MMCV_WITH_OPS=1 {pip} install '
            '--force-reinstall --no-deps --no-build-isolation --no-cache-dir '
            f'--no-binary {stack.mmcv} {stack.pinned(stack.mmcv)[0]}')


def choose_family(facts: Facts) -> str:
    """Return the commands for an environment with both families, or with none.

    Both are uninstalled: they share file names, so removing one damages the other.
    """
    pip = f'{facts.python} -m pip'
    both = ' '.join(map(' '.join, families(facts.distributions).values()))
    first = f'{pip} uninstall -y {both}\n' if both else ''
    if facts.project_stack:
        return first + facts.project_stack.command
    # Two calls: without torch and the build tools, mmcv would be built without its ops.
    return (f'{first}STACK=onedl   # or STACK=upstream\n'
            f'{pip} install -c {ROOT}/tools/constraints-$STACK.txt setuptools wheel packaging ninja '
            'psutil torch torchvision\n'
            f'CFLAGS=-g0 MMCV_WITH_OPS=1 {pip} install --no-build-isolation --no-cache-dir '
            f'-c {ROOT}/tools/constraints-$STACK.txt -e "{ROOT}[$STACK]"')
