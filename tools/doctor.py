"""Environment doctor: what is installed, what is broken, and the command that mends it.

    python3 tools/doctor.py                            an active environment, else .venv
    python3 tools/doctor.py --python path/to/python    any other one

Works where torch or the OpenMMLab packages are missing or broken: every import runs in a child
process. Exit status 1 if something is broken. `tools/environment.py` ends with the same report.
"""
import argparse
import os
import re
import shutil
import signal
import sys
from typing import Dict, List, NamedTuple, Optional, Sequence

from bootstrap import stack
from bootstrap.project_env import PYTHON as VENV_PYTHON

NEEDED = ('torch', 'einops', 'cv2', 'mmengine', 'mmcv', 'mmcv._ext', 'mmcv.ops', 'xvit_mm')
OPTIONAL = ('torchvision', 'mmdet', 'mmseg', 'mmpretrain', 'faster_coco_eval')
DISTRIBUTIONS = {'cv2': 'opencv-python', 'faster_coco_eval': 'faster-coco-eval'}


class Finding(NamedTuple):
    """One entry of the report: level is 'ok', 'note' or 'broken'; remedy is a command or ''."""

    level: str
    subject: str
    text: str
    remedy: str = ''


# --- remedies -------------------------------------------------------------------------------------


def in_project(facts: stack.Facts) -> bool:
    """Whether this is the project's own environment, which one command repairs."""
    return os.path.dirname(os.path.abspath(facts.python)) == str(VENV_PYTHON.parent)


def family_of(facts: stack.Facts) -> str:
    """'OneDL', 'upstream', 'both' or 'none'."""
    present = stack.families(facts.distributions)
    return 'both' if len(present) == 2 else next(iter(present), 'none')


def mmcv_command(facts: stack.Facts) -> str:
    """Builds mmcv for the torch that is installed; never from pip's cache, which ignores torch."""
    name, wanted = 'onedl-mmcv', stack.pinned('onedl-mmcv')
    if family_of(facts) == 'upstream':
        name, wanted = 'mmcv', 'mmcv>=2.1.0,<2.2.0'
    cuda = 'FORCE_CUDA=1 ' if facts.detail('torch', 'gpu') else ''
    return ('{}CFLAGS=-g0 MMCV_WITH_OPS=1 {{pip}} install --force-reinstall --no-deps '
            '--no-build-isolation --no-cache-dir --no-binary {} "{}"').format(cuda, name, wanted)


def torch_requirement(facts: stack.Facts) -> str:
    """The torch that is installed, without its flavour, which the index chooses."""
    version = facts.distributions.get('torch', '').partition('+')[0]
    return '"torch=={}"'.format(version) if version else 'torch'


def torchvision_requirement(facts: stack.Facts) -> str:
    """The torchvision that goes with the installed torch: their minor numbers run in step."""
    version = facts.distributions.get('torch', '')
    minor = re.match(r'2\.(\d+)\.', version)
    if minor is None:
        return 'torchvision'
    flavour = re.search(r'\+(\S+)', version)
    index = ' --index-url https://download.pytorch.org/whl/' + flavour.group(1) if flavour else ''
    return '"torchvision==0.{}.*"{}'.format(int(minor.group(1)) + 15, index)


def remedy_for(template: str, facts: stack.Facts) -> str:
    """Fills in a template; in the project's own environment one command repairs every package."""
    if in_project(facts) and '{' in template:
        return 'python3 tools/environment.py --repair'
    template = template.replace('{mmcv}', mmcv_command(facts))
    return template.format(pip=facts.python + ' -m pip',
                           opencv=facts.distributions.get('opencv-python', '*'),
                           torch=torch_requirement(facts),
                           torchvision=torchvision_requirement(facts))


def install_template(module: str, facts: stack.Facts) -> str:
    """Remedy template for a module that is not installed."""
    if module == 'torchvision':
        return '{pip} install {torchvision}'
    if module == 'xvit_mm':
        return '{{pip}} install --no-deps -e {}'.format(stack.ROOT)
    family = stack.FAMILIES.get(family_of(facts), {})
    if module == 'mmcv' and family:
        return '{mmcv}'
    if module in stack.FAMILIES['OneDL']:
        # Without a family, or with both, the finding on the family has the remedy.
        return '{pip} install ' + family[module] if family else ''
    return '{pip} install ' + DISTRIBUTIONS.get(module, module)


# --- findings -------------------------------------------------------------------------------------


def judge_python(facts: stack.Facts) -> List[Finding]:
    """The interpreter's version, and a PYTHONPATH that may hide the environment's packages."""
    text = '{} at {}'.format('.'.join(str(part) for part in facts.version), facts.python)
    low, high = stack.SUPPORTED
    found = [Finding('ok', 'Python', text)]
    if not low <= facts.version[:2] <= high:
        remedy = 'use Python 3.{} to 3.{}'.format(low[1], high[1])
        found = [Finding('broken', 'Python', text, remedy)]
    if os.environ.get('PYTHONPATH'):
        text = os.environ['PYTHONPATH'] + " comes before the environment's own packages"
        found.append(Finding('note', 'PYTHONPATH', text, 'unset PYTHONPATH'))
    return found


def judge_family(facts: stack.Facts) -> List[Finding]:
    """Exactly one family has to be there."""
    family, names = family_of(facts), stack.families(facts.distributions)
    pip = facts.python + ' -m pip'
    onedl = stack.install_command(pip, 'OneDL')
    if in_project(facts):
        onedl = 'python3 tools/environment.py'
    if family == 'both':
        return [Finding('broken', 'family', *stack.both_families(names, pip, onedl))]
    if family == 'none':
        text = 'no OpenMMLab packages: neither of the OneDL nor of the upstream family'
        remedy = onedl + '\nor, for upstream: ' + stack.install_command(pip, 'upstream')
        return [Finding('broken', 'family', text, remedy)]
    listed = ', '.join(name + ' ' + facts.distributions[name] for name in names[family])
    return [Finding('ok', 'family', '{}: {}'.format(family, listed))]


def judge_versions(facts: stack.Facts) -> List[Finding]:
    """Packages of the OneDL stack in another version than the tested one."""
    if family_of(facts) != 'OneDL':
        return []
    tested = stack.pins()
    names = sorted(stack.FAMILIES['OneDL'].values()) + ['torch', 'torchvision', 'numpy']
    other = [name for name in names if name in facts.distributions
             and facts.distributions[name].split('+')[0] != tested[name]]
    remedy = remedy_for('{pip} install --no-deps --no-build-isolation --no-cache-dir '
                        + ' '.join(map(stack.pinned, other)), facts)
    text = ', '.join('{} {} (tested: {})'.format(name, facts.distributions[name], tested[name])
                     for name in other)
    return [Finding('note', 'versions', text, remedy)] if other else []


def missing_module(error: str) -> str:
    """Name of the module that an import error misses, '' if it is about something else."""
    found = re.search(r"No module named '([\w.]+)'", error)
    return found.group(1) if found else ''


def cause_of(module: str, error: str, facts: stack.Facts) -> str:
    """An earlier module that failed with the same error, '' if this is the first."""
    earlier = next(name for name, record in facts.modules.items() if record.get('error') == error)
    return '' if earlier == module else earlier


def judge_error(module: str, error: str, facts: stack.Facts, level: str) -> Finding:
    """Why a module did not import, and what mends it."""
    missing = missing_module(error)
    if missing == module.split('.')[0]:
        return Finding(level, module, 'not installed',
                       remedy_for(install_template(module, facts), facts))
    cause = cause_of(module, error, facts)
    if cause:
        return Finding('broken', module, 'needs {}, see there'.format(cause))
    install = install_template(missing.split('.')[0] or module, facts)
    meaning, remedy = stack.explain(module, error) or ('does not import', install)
    text = '{} ({})'.format(meaning, ' '.join(error.split())[:300])
    return Finding('broken', module, text, remedy_for(remedy, facts))


def judge_module(module: str, facts: stack.Facts, needed: bool) -> List[Finding]:
    """Whether a module imports; parts of a package that does not are passed over."""
    record = facts.modules[module]
    if 'error' not in record:
        text = ' '.join(part for part in (record['version'], record['path']) if part)
        return [Finding('ok', module, text)]
    whole = 'mmcv._ext' if module == 'mmcv.ops' else module.split('.')[0]
    if whole != module and facts.detail(whole, 'error'):
        return []
    return [judge_error(module, record['error'], facts, 'broken' if needed else 'note')]


def judge_flavours(facts: stack.Facts) -> List[Finding]:
    """torch and torchvision for the same CUDA, or both for the CPU."""
    versions = [facts.detail(name, 'version') for name in ('torch', 'torchvision')]
    if None in versions:
        return []
    flavours = [version.partition('+')[2] for version in versions]
    text = 'torch {} with torchvision {}'.format(*versions)
    if all(flavours) and flavours[0] != flavours[1]:
        remedy = remedy_for('{pip} install --force-reinstall --no-deps {torchvision}', facts)
        return [Finding('broken', 'flavour', text + ' do not match', remedy)]
    return [Finding('ok', 'flavour', text)]


def judge_gpu(facts: stack.Facts) -> List[Finding]:
    """What a visible GPU needs: a CUDA torch that sees it, and mmcv's CUDA ops."""
    if facts.detail('torch', 'version') is None:
        return []
    gpu, cuda = facts.detail('torch', 'gpu'), facts.detail('torch', 'cuda')
    if gpu is None:
        return [judge_unseen_gpu(cuda)]
    found = [Finding('ok', 'GPU', '{}, torch built for CUDA {}'.format(gpu, cuda))]
    if facts.detail('mmcv.ops', 'cuda') == 'not available':
        text = 'mmcv has CPU ops only: nms, RoIAlign and others fail on the GPU'
        if stack.nvcc() is None:
            text += '; first install the CUDA {} toolkit (no nvcc is found)'.format(cuda)
        found.append(Finding('broken', 'mmcv on GPU', text, remedy_for('{mmcv}', facts)))
    return found


def judge_unseen_gpu(cuda: Optional[str]) -> Finding:
    """Why torch sees no GPU."""
    if shutil.which('nvidia-smi') is None:
        return Finding('ok', 'GPU', 'none: training runs on the CPU')
    if cuda is None:
        return Finding('note', 'GPU', 'a driver is installed, but torch is a CPU build',
                       'reinstall torch and torchvision for CUDA as https://pytorch.org says')
    return Finding('note', 'GPU', 'torch is built for CUDA {}, but sees no GPU'.format(cuda),
                   'nvidia-smi   (if it lists a GPU with a lower CUDA version: update the driver)')


def judge_compilers() -> List[Finding]:
    """Only a build of mmcv needs them, so their absence is a note."""
    found = stack.compiler()
    if found is None:
        return [Finding('note', 'C++ compiler', 'none (needed only to build mmcv)',
                        'sudo apt-get install -y g++ python3-dev')]
    return [Finding('ok', 'C++ compiler', '{}; nvcc: {}'.format(found, stack.nvcc() or 'none'))]


def examine(
    python: str,
    needed: Sequence[str] = NEEDED,
    optional: Sequence[str] = OPTIONAL,
    env: Optional[Dict[str, str]] = None,
) -> List[Finding]:
    """The whole report on an interpreter, in reading order.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    facts = stack.gather(python, list(needed) + list(optional), env)
    findings = judge_python(facts) + judge_family(facts) + judge_versions(facts)
    for module in facts.modules:
        findings += judge_module(module, facts, module in needed)
    return findings + judge_flavours(facts) + judge_gpu(facts) + judge_compilers()


# --- command line ---------------------------------------------------------------------------------


def lines_of(finding: Finding) -> List[str]:
    """A finding as text."""
    lines = ['{:<7} {:<17} {}'.format(finding.level, finding.subject, finding.text)]
    if finding.remedy:
        first, *more = finding.remedy.splitlines()
        lines.append('{:<26}mend: {}'.format('', first))
        lines.extend('{:<32}{}'.format('', line) for line in more)
    return lines


def report(findings: Sequence[Finding]) -> int:
    """Prints the findings; returns the exit status."""
    for finding in findings:
        print('\n'.join(lines_of(finding)))
    broken = [finding.subject for finding in findings if finding.level == 'broken']
    print('\nbroken: ' + ', '.join(broken) if broken else '\nNothing is broken.')
    return 1 if broken else 0


def chosen_python(given: Optional[str]) -> str:
    """The interpreter to examine: the given one, an active environment, .venv, or this one."""
    if given:
        return shutil.which(given) or given
    in_environment = sys.prefix != sys.base_prefix or 'CONDA_PREFIX' in os.environ
    if not in_environment and VENV_PYTHON.exists():
        return str(VENV_PYTHON)
    return sys.executable


def main() -> int:
    """Reads the arguments, examines, prints."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `doctor.py | head` is no error
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--python', help='interpreter to examine')
    try:
        findings = examine(chosen_python(parser.parse_args().python))
    except RuntimeError as error:
        remedy = 'if it is the one in .venv: rm -rf .venv && python3 tools/environment.py'
        findings = [Finding('broken', 'Python', str(error), remedy)]
    return report(findings)


if __name__ == '__main__':
    sys.exit(main())
