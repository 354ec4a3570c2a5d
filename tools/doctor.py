"""Environment doctor: what is installed, what is broken, and the command that repairs it.

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
from collections.abc import Sequence
from typing import NamedTuple

from bootstrap import remedies, stacks
from bootstrap.facts import Facts, gather

NEEDED = ('torch', 'torch.from_numpy', 'einops', 'cv2', 'mmengine', 'mmcv', 'mmcv._ext', 'mmcv.ops',
          'xvit_mm')
OPTIONAL = ('torchvision', 'mmdet', 'mmseg', 'mmpretrain', 'faster_coco_eval')


class Finding(NamedTuple):
    """One entry of the report: level is 'ok', 'note' or 'broken'; remedy is a command or ''."""

    level: str
    subject: str
    text: str
    remedy: str = ''


# --- the environment as a whole -------------------------------------------------------------------


def judge_python(facts: Facts) -> list[Finding]:
    """The interpreter's version, and a PYTHONPATH that may hide the environment's packages."""
    version = '.'.join(map(str, facts.version))
    found = [Finding('ok', 'Python', f'{version} at {facts.python}')]
    stack = facts.stack or stacks.STACKS['onedl']
    if version.rpartition('.')[0] not in stack.pythons:
        found = [Finding('broken', 'Python', f'{version} at {facts.python}: the {stack.name} stack '
                         'does not exist for it', f'use Python {" or ".join(stack.pythons)}')]
    if os.environ.get('PYTHONPATH'):
        text = os.environ['PYTHONPATH'] + " comes before the environment's own packages"
        found.append(Finding('note', 'PYTHONPATH', text, 'unset PYTHONPATH'))
    return found


def judge_family(facts: Facts) -> list[Finding]:
    """Exactly one family has to be there."""
    names, pip = stacks.families(facts.distributions), f'{facts.python} -m pip'
    if facts.family == 'both':
        onedl, upstream = (', '.join(names[key]) for key in ('onedl', 'upstream'))
        text = ('both families of the OpenMMLab stack are installed and overwrite each other: '
                f'OneDL ({onedl}) and upstream ({upstream})')
        return [Finding('broken', 'family', text, remedies.separate_families(facts))]
    if facts.family == 'none':
        onedl = facts.project_stack.command if facts.project_stack else remedies.install_family(
            pip, 'onedl')
        return [Finding('broken', 'family',
                        'no OpenMMLab packages: neither of the OneDL nor of the upstream family',
                        f'{onedl}\nor, for upstream: {remedies.install_family(pip, "upstream")}')]
    listed = ', '.join(f'{name} {facts.distributions[name]}' for name in names[facts.family])
    return [Finding('ok', 'family', f'{stacks.STACKS[facts.family].name}: {listed}')]


def judge_versions(facts: Facts) -> list[Finding]:
    """Packages of the stack in another version than the tested one."""
    stack = facts.stack
    if stack is None:
        return []
    tested = stack.pins()
    names = [*sorted(stack.packages.values()), 'torch', 'torchvision', 'numpy', 'opencv-python']
    other = [name for name in names if name in facts.distributions
             and facts.distributions[name].split('+')[0] != tested[name]]
    text = ', '.join(f'{name} {facts.distributions[name]} (tested: {tested[name]})'
                     for name in other)
    command = '{pip} install --no-deps --no-build-isolation --no-cache-dir ' + ' '.join(
        map(stack.pinned, other))
    return [Finding('note', 'versions', text, remedies.fill_in(command, facts))] if other else []


def judge_flavours(facts: Facts) -> list[Finding]:
    """torch and torchvision for the same CUDA, or both for the CPU."""
    versions = [facts.detail(name, 'version') for name in ('torch', 'torchvision')]
    if None in versions:
        return []
    text = 'torch {} with torchvision {}'.format(*versions)
    flavours = [version.partition('+')[2] for version in versions]
    if all(flavours) and flavours[0] != flavours[1]:
        command = '{pip} install --force-reinstall --no-deps {torchvision}'
        return [Finding('broken', 'flavour', text + ' do not match',
                        remedies.fill_in(command, facts))]
    return [Finding('ok', 'flavour', text)]


def judge_gpu(facts: Facts) -> list[Finding]:
    """What a visible GPU needs: a CUDA torch that sees it, and mmcv's CUDA ops."""
    gpu, cuda = facts.detail('torch', 'gpu'), facts.detail('torch', 'cuda')
    if facts.detail('torch', 'version') is None:
        return []
    if gpu is None and shutil.which('nvidia-smi') is None:
        return [Finding('ok', 'GPU', 'none: training runs on the CPU')]
    if gpu is None and cuda is None:
        return [Finding('note', 'GPU', 'a driver is installed, but torch is a CPU build',
                        'reinstall torch and torchvision for CUDA as https://pytorch.org says')]
    if gpu is None:
        return [Finding('note', 'GPU', f'torch is built for CUDA {cuda}, but sees no GPU',
                        'nvidia-smi   (a lower CUDA version there: update the driver)')]
    found = [Finding('ok', 'GPU', f'{gpu}, torch built for CUDA {cuda}')]
    if facts.detail('mmcv.ops', 'cuda') == 'not available':
        text = 'mmcv has CPU ops only: nms, RoIAlign and others fail on the GPU'
        if stacks.nvcc() is None:
            text += f'; first install the CUDA {cuda} toolkit (no nvcc is found)'
        found.append(Finding('broken', 'mmcv on GPU', text, remedies.fill_in('{mmcv}', facts)))
    return found


def judge_compilers() -> list[Finding]:
    """Only a build of mmcv needs them, so their absence is a note."""
    found = stacks.compiler()
    if found is None:
        return [Finding('note', 'C++ compiler', 'none (needed only to build mmcv)',
                        'sudo apt-get install -y g++ python3-dev')]
    return [Finding('ok', 'C++ compiler', f'{found}; nvcc: {stacks.nvcc() or "none"}')]


# --- modules --------------------------------------------------------------------------------------


def judge_module(module: str, facts: Facts) -> list[Finding]:
    """Whether a module imports; parts of a package that does not are passed over."""
    record = facts.modules[module]
    if 'error' not in record:
        return [Finding('ok', module, f'{record["version"]} {record["path"]}'.strip())]
    whole = 'mmcv._ext' if module == 'mmcv.ops' else module.split('.')[0]
    if whole != module and facts.detail(whole, 'error'):
        return []
    if module == 'mmcv._ext' and 'mmcv-lite' in facts.distributions:
        return [judge_lite(facts)]
    return [judge_error(module, record, facts)]


def judge_lite(facts: Facts) -> Finding:
    """mmcv-lite is enough for backbones and classifiers, not for mmdet and mmseg."""
    text = 'mmcv-lite is installed, which has no compiled ops: '
    if not {'mmdet', 'mmsegmentation'} & set(facts.distributions):
        return Finding('note', 'mmcv-lite', text + 'backbones, necks and heads work without them')
    return Finding('broken', 'mmcv-lite', text + 'detectors need nms and RoIAlign',
                   remedies.fill_in('{mmcv}', facts))


def judge_error(module: str, record: dict, facts: Facts) -> Finding:
    """Why a module did not import, and what repairs it."""
    error = record['error']
    missing = re.search(r"No module named '([\w.]+)'", error)
    name = missing.group(1) if missing else ''
    if name == module.split('.')[0]:
        command = remedies.install_template(module, facts)
        return Finding('broken' if module in NEEDED else 'note', module, 'not installed',
                       remedies.fill_in(command, facts))
    cause = next(one for one, other in facts.modules.items() if other.get('error') == error)
    if cause != module:
        return Finding('broken', module, f'needs {cause}, see there')
    short = ' '.join(error.split())[:300]
    known = remedies.explain(module, error)
    own_lines = record.get('own')
    if module == 'xvit_mm' and own_lines and not missing and known is None:
        text = f'this package itself fails, in {own_lines[-1]} ({short})'
        return Finding('broken', module, text, own_package_command(facts))
    meaning, command = known or (
        'does not import', remedies.install_template(name.split('.')[0] or module, facts))
    return Finding('broken', module, f'{meaning} ({short})', remedies.fill_in(command, facts))


def own_package_command(facts: Facts) -> str:
    """For a damaged copy of this package, or one that meets versions it was not tested with."""
    stack = facts.stack or stacks.STACKS['onedl']
    names = ('torch', 'torchvision', 'numpy', stack.packages['mmengine'])
    tested = ' '.join(map(stack.pinned, names))
    return (f'git -C {stacks.ROOT} status --short xvit_mm   (lists changed and lost files; `git '
            f'-C {stacks.ROOT} restore xvit_mm` brings them back)\n'
            f'or, where nothing is changed, the tested versions: {facts.python} -m pip install '
            f'{tested}')


def examine(
    python: str,
    needed: Sequence[str] = NEEDED,
    optional: Sequence[str] = OPTIONAL,
    env: dict[str, str] | None = None,
) -> list[Finding]:
    """The whole report on an interpreter, in reading order.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    facts = gather(python, [*needed, *optional], env)
    findings = judge_python(facts) + judge_family(facts) + judge_versions(facts)
    for module in facts.modules:
        findings += judge_module(module, facts)
    return findings + judge_flavours(facts) + judge_gpu(facts) + judge_compilers()


# --- command line ---------------------------------------------------------------------------------


def lines_of(finding: Finding) -> list[str]:
    """A finding as text."""
    lines = [f'{finding.level:<7} {finding.subject:<17} {finding.text}']
    for number, line in enumerate(finding.remedy.splitlines()):
        lines.append(f'{"":<26}{"repair: " if number == 0 else "":<8}{line}')
    return lines


def report(findings: Sequence[Finding]) -> int:
    """Print the findings; return the exit status."""
    for finding in findings:
        print('\n'.join(lines_of(finding)))
    broken = [finding.subject for finding in findings if finding.level == 'broken']
    print('\nbroken: ' + ', '.join(broken) if broken else '\nNothing is broken.')
    return 1 if broken else 0


def choose_python(given: str | None) -> str:
    """The interpreter to examine: the given one, an active environment, .venv, or this one."""
    if given:
        return shutil.which(given) or given
    in_environment = sys.prefix != sys.base_prefix or 'CONDA_PREFIX' in os.environ
    own = [stack.python for stack in stacks.STACKS.values() if stack.python.exists()]
    return str(own[0]) if own and not in_environment else sys.executable


def main() -> int:
    """Read the arguments, examine, print."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `doctor.py | head` is no error
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--python', help='interpreter to examine')
    try:
        findings = examine(choose_python(parser.parse_args().python))
    except RuntimeError as error:
        remedy = 'if it is the one in .venv: rm -rf .venv && python3 tools/environment.py'
        findings = [Finding('broken', 'Python', str(error), remedy)]
    return report(findings)


if __name__ == '__main__':
    sys.exit(main())
