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
    r'|^torchvision: .*(undefined symbol|libc10|libtorch|libcudart)': (
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
    if 'Building wheel' in output and not has_compiler():
        return ('there is no C++ compiler ($CXX or c++) for a package without a wheel that fits: '
                'sudo apt-get install -y g++ python3-dev')
    return next((text for pattern, text in PIP_FAILURES.items() if re.search(pattern, output)),
                'its message is above')


def has_compiler() -> bool:
    """Whether there is the C++ compiler that a build would use."""
    return shutil.which((os.environ.get('CXX') or 'c++').split(' ')[0]) is not None


def fill_in(template: str, facts: Facts) -> str:
    """Return the remedy of a template; in the project's own environment one command repairs all."""
    stack = facts.stack or STACKS['onedl']
    if facts.project_stack:
        return re.sub(r'\{.*', facts.project_stack.command + ' --repair', template)
    found = facts.distributions
    torch, _, flavour = found.get('torch', '').partition('+')
    minor = int(torch.split('.')[1]) if torch.startswith('2.') else 99
    torchvision = 'torchvision'
    if minor < 99:  # the minor versions of the two run in step
        index = f' --index-url https://download.pytorch.org/whl/{flavour}' if flavour else ''
        torchvision = f'"torchvision==0.{minor + 15}.*"{index}'
    opencv = [name for name in ('opencv-python', 'opencv-python-headless') if name in found]
    built_for = STACKS['upstream' if minor < 3 else 'onedl']  # numpy 1, numpy 2
    return template.format(
        pip=f'{facts.python} -m pip',
        torch=f'torch=={torch}' if torch else 'torch',
        torchvision=torchvision,
        numpy_opencv=' '.join(built_for.pinned('numpy', *(opencv or ['opencv-python']))),
        headless=f'"opencv-python-headless=={found.get("opencv-python", "*")}"',
        mmcv=build_mmcv(facts),
        tested=' '.join(stack.pinned('torch', 'torchvision', 'numpy', stack.packages['mmengine'])),
        environment=stack.command)


def install_module(module: str, facts: Facts) -> str:
    """Return the template of the command that installs a missing module."""
    packages = facts.stack.packages if facts.stack else dict.fromkeys(UPSTREAM)
    if packages.get(module, module) is None:
        return ''  # the finding on the family has the command
    given = {**packages, 'torchvision': '{torchvision}', 'cv2': '{numpy_opencv}',
             'xvit_mm': f'--no-deps -e {ROOT}'}
    return '{mmcv}' if module == 'mmcv' else '{pip} install ' + given.get(module, module)


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
