"""Failures with a known remedy, and the commands that repair an environment."""
import re

from bootstrap import stacks
from bootstrap.facts import Facts

MMCV_2_1 = 'mmcv>=2.1.0,<2.2.0'
DISTRIBUTIONS = {'cv2': 'opencv-python', 'faster_coco_eval': 'faster-coco-eval'}

# Part of `module: error` -> what it means, and a command ({pip}, {mmcv}, ... are filled in).
FAILURES = {
    r'lib(GL|gthread|glib)[\w.-]*: cannot open': (
        'opencv-python needs system libraries (libGL.so.1) that are not installed',
        'sudo apt-get install -y libgl1 libglib2.0-0\n'
        'or, without root: {pip} install --force-reinstall --no-deps '
        'opencv-python-headless=={opencv}'),
    r'^torch: .*(undefined symbol|\.so[.\d]*: cannot open)': (
        'torch does not fit the CUDA libraries that are installed with it, or they are incomplete',
        '{pip} uninstall -y torch torchvision && {pip} install {torch} {torchvision}'),
    r"torchvision::nms does not exist|Couldn't load custom C\+\+ ops"
    r'|partially initialized module .torchvision'
    r'|^torchvision: .*(undefined symbol|libc10|libtorch|libcudart)': (
        'torchvision belongs to another torch, in version or in flavour (CPU or CUDA)',
        '{pip} install --force-reinstall --no-deps {torchvision}'),
    r'undefined symbol|libc10|libtorch|libcudart': (
        'its compiled part was built for another torch', '{mmcv}'),
    r"No module named 'mmcv._ext'": ('mmcv is here without its compiled ops', '{mmcv}'),
    r"No module named 'pkg_resources'": (
        'setuptools 82 and later have no pkg_resources', '{pip} install "setuptools>=80,<82"'),
    r'Numpy is not available': (
        'this torch was built for numpy 1 and cannot use numpy 2',
        '{pip} install {numpy} {cv2}'),
    r'^cv2: .*(_ARRAY_API|multiarray|NumPy 1|numpy\.core)': (
        'opencv was built for another numpy', '{pip} install {numpy} {cv2}'),
    r'_ARRAY_API not found|multiarray failed to import|compiled using NumPy 1': (
        'a compiled package was built for numpy 1, and numpy 2 is installed',
        '{pip} install {numpy}'),
    r'MMCV==\S+ is used but incompatible': (
        'mmdet and mmseg of the upstream family want mmcv >=2.0.0,<2.2.0',
        '{mmcv_2_1}\nor, to keep it, see "Newest of upstream" in docs/stacks.md'),
}


def explain(module: str, error: str) -> tuple[str, str] | None:
    """Return meaning and remedy template of a known import failure, None if it is not known."""
    return next((known for pattern, known in FAILURES.items()
                 if re.search(pattern, f'{module}: {error}', re.DOTALL)), None)


def minor_of_torch(facts: Facts) -> int | None:
    """Return 12 for torch 2.12.1."""
    found = re.match(r'2\.(\d+)\.', facts.distributions.get('torch', ''))
    return int(found.group(1)) if found else None


def fill_in(template: str, facts: Facts) -> str:
    """Return the command of a template; in the project's own environment one command repairs all."""
    if facts.project_stack and '{' in template:
        return facts.project_stack.command + ' --repair'
    template = template.replace('{mmcv}', _build_mmcv(facts, _mmcv(facts)))
    template = template.replace('{mmcv_2_1}', _build_mmcv(facts, MMCV_2_1))
    version = facts.distributions.get('torch', '').partition('+')[0]
    return template.format(
        pip=f'{facts.python} -m pip',
        opencv=facts.distributions.get('opencv-python', '*'),
        torch=f'"torch=={version}"' if version else 'torch',
        torchvision=_torchvision(facts),
        numpy=_numpy(facts),
        cv2=f'"{_opencv(facts)}"')


def _mmcv(facts: Facts) -> str:
    """Requirement of the mmcv that goes with the other packages."""
    stack = facts.stack or stacks.STACKS['onedl']
    return MMCV_2_1 if stack.key == 'upstream' else stack.pinned(stack.mmcv)


def _build_mmcv(facts: Facts, wanted: str) -> str:
    """Build mmcv for the torch that is installed; never from pip's cache, which ignores torch."""
    name = re.split('[=<>]', wanted)[0]
    remove = '{pip} uninstall -y mmcv-lite && ' if 'mmcv-lite' in facts.distributions else ''
    cuda = 'FORCE_CUDA=1 ' if facts.detail('torch', 'gpu') else ''
    return (f'{remove}{cuda}CFLAGS=-g0 MMCV_WITH_OPS=1 {{pip}} install --force-reinstall --no-deps '
            f'--no-build-isolation --no-cache-dir --no-binary {name} "{wanted}"')


def _torchvision(facts: Facts) -> str:
    """The torchvision that goes with the installed torch: their minor numbers run in step."""
    minor = minor_of_torch(facts)
    if minor is None:
        return 'torchvision'
    flavour = facts.distributions['torch'].partition('+')[2]
    index = f' --index-url https://download.pytorch.org/whl/{flavour}' if flavour else ''
    return f'"torchvision==0.{minor + 15}.*"{index}'


def _numpy(facts: Facts) -> str:
    """torch before 2.3 was built for numpy 1 and reads no arrays of numpy 2."""
    minor = minor_of_torch(facts)
    return '"numpy<2"' if minor is not None and minor < 3 else '"numpy>=2,<2.3"'


def _opencv(facts: Facts) -> str:
    """From 4.12 on opencv asks for numpy 2."""
    headless = 'opencv-python-headless'
    name = headless if headless in facts.distributions else 'opencv-python'
    return name + ('<4.12' if '<2"' in _numpy(facts) else '>=4.12,<4.13')


def install_template(module: str, facts: Facts) -> str:
    """Return the template of the command that installs a missing module."""
    if module == 'torchvision':
        return '{pip} install {torchvision}'
    if module == 'xvit_mm':
        return f'{{pip}} install --no-deps -e {stacks.ROOT}'
    if module in stacks.STACKS['onedl'].packages:
        if facts.family not in stacks.STACKS:
            return ''  # the finding on the family has the command
        name = stacks.STACKS[facts.family].packages[module]
        return '{mmcv}' if module == 'mmcv' else f'{{pip}} install {name}'
    return '{pip} install ' + DISTRIBUTIONS.get(module, module)


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
    """Return the commands for an environment with both families.

    Both are uninstalled: they share file names, so removing one damages the other.
    """
    names = stacks.families(facts.distributions)
    pip = f'{facts.python} -m pip'
    return (f'{pip} uninstall -y {" ".join(names["upstream"] + names["onedl"])}\n'
            f'then, to keep OneDL: {install_family(pip, "onedl")}\n'
            f'or, to keep upstream: {install_family(pip, "upstream")}')


def restore_package(facts: Facts) -> str:
    """Return commands for a damaged copy of this package, or for untested versions beside it."""
    stack, git = facts.stack or stacks.STACKS['onedl'], f'git -C {stacks.ROOT}'
    tested = map(stack.pinned, ('torch', 'torchvision', 'numpy', stack.packages['mmengine']))
    return (f'{git} status --short xvit_mm   (lists changed and lost files; `{git} restore '
            f'xvit_mm` brings them back)\nor, where nothing is changed, the tested versions: '
            f'{facts.python} -m pip install {" ".join(tested)}')
