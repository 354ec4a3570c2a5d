"""Failures with a known remedy, and the commands that repair an environment."""
import re

from bootstrap import stacks
from bootstrap.facts import Facts

# Part of `module: error` -> what it means, and a command ({pip}, {mmcv}, ... are filled in).
FAILURES = {
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
        'this torch was built for numpy 1 and cannot use numpy 2', '{pip} install {numpy} {cv2}'),
    r'^cv2: .*(_ARRAY_API|multiarray|NumPy 1|numpy\.core)': (
        'opencv was built for another numpy', '{pip} install {numpy} {cv2}'),
    r'_ARRAY_API not found|multiarray failed to import|compiled using NumPy 1': (
        'a compiled package was built for numpy 1, and numpy 2 is installed',
        '{pip} install {numpy}'),
    r'MMCV==\S+ is used but incompatible': (
        'mmdet and mmseg of the upstream family want mmcv >=2.0.0,<2.2.0',
        '{older_mmcv}\nor, to keep it, see "Newest of upstream" in docs/stacks.md'),
}


def explain(module: str, error: str) -> tuple[str, str] | None:
    """Return meaning and remedy template of a known import failure, None if it is not known."""
    return next((known for pattern, known in FAILURES.items()
                 if re.search(pattern, f'{module}: {error}', re.DOTALL)), None)


def template_of(module: str, facts: Facts) -> str:
    """Return the template of the command that installs a missing module."""
    given = {'torchvision': '{torchvision}', 'xvit_mm': f'--no-deps -e {stacks.ROOT}',
             'cv2': '{cv2}', 'faster_coco_eval': 'faster-coco-eval'}
    if facts.stack:
        given.update(facts.stack.packages)
    elif module in stacks.UPSTREAM:
        return ''  # the finding on the family has the command
    return '{mmcv}' if module == 'mmcv' else '{pip} install ' + given.get(module, module)


def fill_in(template: str, facts: Facts) -> str:
    """Return the command of a template; in the project's own environment one command repairs all."""
    if facts.project_stack:
        return re.sub(r'\{.*', facts.project_stack.command + ' --repair', template)
    found = facts.distributions
    torch, _, flavour = found.get('torch', '').partition('+')
    minor = int(torch.split('.')[1]) if torch.startswith('2.') else None
    torchvision = 'torchvision'
    if minor is not None:  # the minor versions of the two run in step
        index = f' --index-url https://download.pytorch.org/whl/{flavour}' if flavour else ''
        torchvision = f'"torchvision==0.{minor + 15}.*"{index}'
    numpy, cv2 = '"numpy>=2,<2.3"', '>=4.12,<4.13'
    if minor is not None and minor < 3:  # built for numpy 1; opencv asks for 2 from 4.12 on
        numpy, cv2 = '"numpy<2"', '<4.12'
    opencv = next((one for one in ('opencv-python-headless', 'opencv-python') if one in found),
                  'opencv-python')
    stack = facts.stack or stacks.STACKS['onedl']
    return template.format(
        pip=f'{facts.python} -m pip',
        torch=f'"torch=={torch}"' if torch else 'torch',
        torchvision=torchvision,
        numpy=numpy,
        cv2=f'"{opencv}{cv2}"',
        headless=f'"opencv-python-headless=={found.get("opencv-python", "*")}"',
        mmcv=_build_mmcv(facts, stack),
        older_mmcv=_build_mmcv(facts, stacks.STACKS['upstream']))


def _build_mmcv(facts: Facts, stack: stacks.Stack) -> str:
    """Build mmcv for the torch that is installed; never from pip's cache, which ignores torch."""
    pip, gpu = f'{facts.python} -m pip', facts.detail('torch', 'gpu')
    first = ''
    if stacks.compiler() is None:
        first = 'sudo apt-get install -y g++ python3-dev && '
    if gpu and stacks.nvcc() is None:
        first += f'install the CUDA {facts.detail("torch", "cuda")} toolkit (no nvcc is found), then '
    if 'mmcv-lite' in facts.distributions:
        first += f'{pip} uninstall -y mmcv-lite && '
    return (f'{first}{"FORCE_CUDA=1 " * bool(gpu)}CFLAGS=-g0 MMCV_WITH_OPS=1 {pip} install '
            '--force-reinstall --no-deps --no-build-isolation --no-cache-dir '
            f'--no-binary {stack.mmcv} {stack.pinned(stack.mmcv)}')


def install_family(pip: str, key: str) -> str:
    """Return the command that installs a family into a user's environment and keeps its torch.

    Two calls: without torch and the build tools, mmcv would be built without its ops.
    """
    tools = '"setuptools>=80,<82" wheel packaging ninja psutil'
    torch = 'torch torchvision'
    if key == 'upstream':
        torch = ' '.join(map(stacks.STACKS[key].pinned, ('torch', 'torchvision'))) + ' "numpy<2"'
    return (f'{pip} install {tools} {torch} && CFLAGS=-g0 MMCV_WITH_OPS=1 {pip} install '
            f'--no-build-isolation --no-cache-dir -c tools/constraints-{key}.txt -e ".[{key}]"')


def separate_families(facts: Facts) -> str:
    """Return the commands for an environment with both families, or with none.

    Both are uninstalled: they share file names, so removing one damages the other.
    """
    names, pip = stacks.families(facts.distributions), f'{facts.python} -m pip'
    both = [name for family in names.values() for name in family]
    if facts.project_stack and not both:
        return facts.project_stack.command
    first = f'{pip} uninstall -y {" ".join(both)}\nthen, ' if both else ''
    return (f'{first}for OneDL: {install_family(pip, "onedl")}\n'
            f'or, for upstream: {install_family(pip, "upstream")}')


def restore_package(facts: Facts) -> str:
    """Return commands for a damaged copy of this package, or for untested versions beside it."""
    stack, git = facts.stack or stacks.STACKS['onedl'], f'git -C {stacks.ROOT}'
    tested = map(stack.pinned, ('torch', 'torchvision', 'numpy', stack.packages['mmengine']))
    return (f'{git} status --short xvit_mm   (lists changed and lost files; `{git} restore '
            f'xvit_mm` brings them back)\nor, where nothing is changed, the tested versions: '
            f'{facts.python} -m pip install {" ".join(tested)}')
