"""What the set-up and the doctor know of the OpenMMLab stack.

The two families of distributions, the tested versions, the failures with a known remedy, the
compilers, and the probe that imports modules in a child process.
"""
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent.parent
CONSTRAINTS = ROOT / 'tools' / 'constraints-onedl.txt'
SUPPORTED = ((3, 10), (3, 12))
MARK = '@probe '

# Import name -> distribution name, for the two families that cannot share an environment.
FAMILIES = {
    'OneDL': {
        'mmengine': 'onedl-mmengine',
        'mmcv': 'onedl-mmcv',
        'mmdet': 'onedl-mmdetection',
        'mmseg': 'onedl-mmsegmentation',
        'mmpretrain': 'onedl-mmpretrain',
    },
    'upstream': {
        'mmengine': 'mmengine',
        'mmcv': 'mmcv',
        'mmdet': 'mmdet',
        'mmseg': 'mmsegmentation',
        'mmpretrain': 'mmpretrain',
    },
}
UPSTREAM_ONLY = ('mmcv-full', 'mmcv-lite', 'mmengine-lite')

# Part of `module: error` -> what it means, and a command ({pip}, {mmcv}, ... are filled in).
FAILURES = (
    (r'lib(GL|gthread|glib)[\w.-]*: cannot open',
     'opencv-python needs system libraries (libGL.so.1) that are not installed',
     'sudo apt-get install -y libgl1 libglib2.0-0\n'
     'or, without root: {pip} install --force-reinstall --no-deps '
     'opencv-python-headless=={opencv}'),
    (r'^torch: .*(undefined symbol|\.so[.\d]*: cannot open)',
     'torch does not fit the CUDA libraries that are installed with it, or they are incomplete',
     '{pip} uninstall -y torch torchvision && {pip} install {torch} {torchvision}'),
    (r'torchvision::nms does not exist|partially initialized module .torchvision'
     r'|^torchvision: .*(undefined symbol|libc10|libtorch|libcudart)',
     'torchvision belongs to another torch, in version or in flavour (CPU or CUDA)',
     '{pip} install --force-reinstall --no-deps {torchvision}'),
    (r'undefined symbol|libc10|libtorch|libcudart',
     'its compiled part was built for another torch',
     '{mmcv}'),
    (r"No module named 'mmcv._ext'",
     'mmcv is here without its compiled ops',
     '{mmcv}'),
    (r"No module named 'pkg_resources'",
     'setuptools 82 and later have no pkg_resources',
     '{pip} install "setuptools>=80,<82"'),
    (r'_ARRAY_API not found|multiarray failed to import|compiled using NumPy 1',
     'a compiled package was built for numpy 1, and numpy 2 is installed',
     '{pip} install "numpy<2"'),
    (r'MMCV==\S+ is used but incompatible',
     'mmdet and mmseg of the upstream family want mmcv >=2.0.0,<2.2.0',
     '{mmcv}'),
)


def explain(module: str, error: str) -> Optional[Tuple[str, str]]:
    """Meaning and remedy template of a known import failure, None if it is not known."""
    for pattern, meaning, remedy in FAILURES:
        if re.search(pattern, '{}: {}'.format(module, error), re.DOTALL):
            return meaning, remedy
    return None


def normal(name: str) -> str:
    """Distribution name in the form in which package indexes compare names."""
    return re.sub(r'[-_.]+', '-', name).lower()


def pins() -> Dict[str, str]:
    """Distribution -> tested version, of the lines that hold for every Python."""
    lines = CONSTRAINTS.read_text(encoding='utf-8').splitlines()
    found = (re.match(r'([\w.-]+)==([\w.]+)\s*$', line) for line in lines)
    return {normal(match.group(1)): match.group(2) for match in found if match}


def pinned(name: str) -> str:
    """Requirement of a distribution in its tested version."""
    return '{}=={}'.format(name, pins()[name])


def families(distributions: Iterable[str]) -> Dict[str, List[str]]:
    """Family -> its distributions among the given names; families without any are left out."""
    names = {normal(name) for name in distributions}
    present = {}
    for family, members in FAMILIES.items():
        wanted = set(members.values()) | (set(UPSTREAM_ONLY) if family == 'upstream' else set())
        if names & wanted:
            present[family] = sorted(names & wanted)
    return present


def install_command(pip: str, family: str) -> str:
    """Installs a whole family into an environment of the user's own, whose torch is kept.

    Two calls: without torch and the build tools, mmcv would be built without its ops.
    """
    tools = '"setuptools>=80,<82" wheel packaging ninja psutil torch torchvision'
    return ('{pip} install {tools} && CFLAGS=-g0 MMCV_WITH_OPS=1 {pip} install '
            '--no-build-isolation --no-cache-dir -e ".[{extra}]"').format(
                pip=pip, tools=tools, extra=family.lower())


def both_families(names: Dict[str, List[str]], pip: str, onedl: str) -> Tuple[str, str]:
    """Message and remedy for an environment with packages of both families.

    Both are uninstalled: they share file names, so removing one damages the other.
    """
    text = ('both families of the OpenMMLab stack are installed and overwrite each other: '
            'OneDL ({}) and upstream ({})').format(', '.join(names['OneDL']),
                                                   ', '.join(names['upstream']))
    uninstall = '{} uninstall -y {}'.format(pip, ' '.join(names['upstream'] + names['OneDL']))
    return text, '{}\nthen, to keep OneDL: {}\nor, to keep upstream: {}'.format(
        uninstall, onedl, install_command(pip, 'upstream'))


def compiler() -> Optional[str]:
    """Path of the C++ compiler that a build would use."""
    names = [os.environ.get('CXX', '').split(' ')[0], 'c++', 'g++', 'clang++']
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def nvcc() -> Optional[str]:
    """Path of the CUDA compiler, where torch looks for it too."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    folders = [home and os.path.join(home, 'bin'), os.environ.get('PATH'), '/usr/local/cuda/bin']
    return shutil.which('nvcc', path=os.pathsep.join(filter(None, folders)))


# --- the probe: what runs inside the examined interpreter -----------------------------------------


def extra_facts(name: str, module: Any) -> Dict[str, Any]:
    """Facts that only the imported module knows."""
    if name == 'torch':
        gpu = module.cuda.get_device_name(0) if module.cuda.is_available() else None
        return {'cuda': module.version.cuda, 'gpu': gpu}
    if name == 'mmcv.ops':
        return {'cuda': module.get_compiling_cuda_version()}
    return {}


def probe_module(name: str) -> Dict[str, Any]:
    """Imports one module; whatever a broken package raises becomes text."""
    try:
        module = importlib.import_module(name)
        record = {
            'name': name,
            'version': str(getattr(module, '__version__', '')),
            'path': getattr(module, '__file__', None) or '',
        }
        record.update(extra_facts(name, module))
        return record
    except (Exception, SystemExit) as error:
        return {'name': name, 'error': '{}: {}'.format(type(error).__name__, error)}


def probe(names: Sequence[str]) -> None:
    """Prints one line of JSON for the interpreter and one for each module, once it is known."""
    from importlib.metadata import distributions
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    head = {
        'python': list(sys.version_info[:3]),
        'distributions': {normal(one.metadata['Name'] or ''): one.version
                          for one in distributions()},
    }
    print('\n' + MARK + json.dumps(head), flush=True)
    for name in names:
        print('\n' + MARK + json.dumps(probe_module(name)), flush=True)


# --- gathering ------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What the probe of one interpreter gave; `modules` holds the record of each import."""

    python: str
    version: Tuple[int, ...]
    distributions: Dict[str, str]
    modules: Dict[str, Dict[str, Any]]

    def detail(self, module: str, name: str) -> Any:
        """One fact of a module, None if it did not import."""
        return self.modules.get(module, {}).get(name)


def run_probe(
    python: str,
    names: Sequence[str],
    env: Optional[Dict[str, str]],
) -> Tuple[List[Dict[str, Any]], str]:
    """Records that the child printed, and how it ended."""
    command = [python, os.path.abspath(__file__)] + list(names)
    try:
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    ending = 'exit status {} {}'.format(done.returncode, done.stderr.strip()[-300:])
    return [json.loads(line[len(MARK):]) for line in lines], ending


def gather(
    python: str,
    names: Sequence[str],
    env: Optional[Dict[str, str]] = None,
) -> Facts:
    """Probes an interpreter; a module that kills the child is noted, the rest still probed.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    modules = {}  # type: Dict[str, Dict[str, Any]]
    pending = list(names)
    while True:
        records, ending = run_probe(python, pending, env)
        if not records:
            raise RuntimeError('{} does not run: {}'.format(python, ending))
        modules.update({record['name']: record for record in records[1:]})
        rest = pending[len(records) - 1:]
        if not rest:
            head = records[0]
            return Facts(python, tuple(head['python']), head['distributions'], modules)
        modules[rest[0]] = {'name': rest[0], 'error': 'Python crashed: ' + ending}
        pending = rest[1:]


if __name__ == '__main__':
    probe(sys.argv[1:])
