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

NEEDED = ('torch', 'torch.from_numpy', 'einops', 'cv2', 'mmengine', 'mmengine.is_installed', 'mmcv',
          'mmcv._ext', 'mmcv.ops', 'xvit_mm')
OPTIONAL = ('torchvision', 'mmdet', 'mmseg', 'mmpretrain', 'faster_coco_eval')


class Finding(NamedTuple):
    """One entry of the report: level is 'ok', 'note' or 'broken'; remedy is a command or ''."""

    level: str
    subject: str
    text: str
    remedy: str = ''

    def __str__(self) -> str:
        lines = [f'{self.level:<7} {self.subject:<17} {self.text}']
        for number, line in enumerate(self.remedy.splitlines()):
            lines.append(f'{"":<26}{"" if number else "repair: ":<8}{line}')
        return '\n'.join(lines)


def judge_python(facts: Facts) -> list[Finding]:
    """Judge the interpreter's version, and a PYTHONPATH that may hide the environment's packages."""
    stack = facts.stack or stacks.STACKS['onedl']
    version = '.'.join(map(str, facts.version))
    found = [Finding('ok', 'Python', f'{version} at {facts.python}')]
    if version.rpartition('.')[0] not in stack.pythons:
        found = [Finding('broken', 'Python', f'{version} at {facts.python}: the {stack.name} stack '
                         'does not exist for it', f'use Python {" or ".join(stack.pythons)}')]
    if os.environ.get('PYTHONPATH'):
        text = os.environ['PYTHONPATH'] + " comes before the environment's own packages"
        found.append(Finding('note', 'PYTHONPATH', text, 'unset PYTHONPATH'))
    return found


def judge_family(facts: Facts) -> list[Finding]:
    """Judge the OpenMMLab packages: exactly one family, best in the tested versions."""
    names, stack = stacks.families(facts.distributions), facts.stack
    if stack is None:
        text = 'no OpenMMLab packages: neither of the OneDL nor of the upstream family'
        if names:
            text = ('both families of the OpenMMLab stack are installed and overwrite each other: '
                    f'OneDL ({", ".join(names["onedl"])}), upstream ({", ".join(names["upstream"])})')
        return [Finding('broken', 'family', text, remedies.separate_families(facts))]
    versions = {name: version.partition('+')[0] for name, version in facts.distributions.items()}
    listed = ', '.join(f'{name} {versions[name]}' for name in names[facts.family])
    found = [Finding('ok', 'family', f'{stacks.STACKS[facts.family].name}: {listed}')]
    tested = stack.pins
    other = [name for name in (*sorted(stack.packages.values()), 'torch', 'torchvision', 'numpy',
                               'opencv-python') if versions.get(name, tested[name]) != tested[name]]
    if other:
        text = ', '.join(f'{name} {versions[name]} (tested: {tested[name]})' for name in other)
        command = '{pip} install --no-deps --no-build-isolation --no-cache-dir ' + ' '.join(
            map(stack.pinned, other))
        found.append(Finding('note', 'versions', text, remedies.fill_in(command, facts)))
    return found


def judge_mmcv_lite(facts: Facts) -> list[Finding]:
    """Judge mmcv-lite, which has no compiled ops, alone or beside mmcv."""
    if 'mmcv-lite' not in facts.distributions:
        return []
    broken = facts.detail('mmcv._ext', 'error') is not None
    text, remedy = 'is enough for backbones, necks and heads', ''
    if 'mmcv' in facts.distributions:
        text = 'installed beside mmcv, whose files it shares: to remove one damages the other'
        remedy = '{mmcv}'
    elif {'mmdet', 'mmsegmentation'} & set(facts.distributions):
        text, remedy = 'has no compiled ops: detectors need nms and RoIAlign', '{mmcv}'
    level = 'broken' if broken and remedy else 'note'
    return [Finding(level, 'mmcv-lite', text, remedies.fill_in(remedy, facts))]


def judge_module(module: str, facts: Facts) -> list[Finding]:
    """Judge whether a module imports; what follows from something reported before is left out."""
    record = facts.modules[module]
    error = record.get('error')
    if error is None:
        text = f'{record.get("version", "")} {record.get("path", "")}'.strip()
        return [Finding('ok', module, text)]
    whole = 'mmcv._ext' if module == 'mmcv.ops' else module.split('.')[0]
    if whole != module and facts.detail(whole, 'error'):
        return []
    if module == 'mmcv._ext' and 'mmcv-lite' in facts.distributions:
        return []
    missing = re.search(r"No module named '([\w.]+)'", error)
    name = missing.group(1) if missing else ''
    if name == module.split('.')[0]:
        level = 'broken' if module in NEEDED or facts.project_stack else 'note'
        command = remedies.template_of(module, facts)
        return [Finding(level, module, 'not installed', remedies.fill_in(command, facts))]
    cause = next(one for one, other in facts.modules.items() if other.get('error') == error)
    if cause != module:
        return [Finding('broken', module, f'needs {cause}, see there')]
    short = ' '.join(error.split())[:300]
    known = remedies.explain(module, error)
    if module == 'xvit_mm' and record.get('own') and not missing and known is None:
        text = f'this package itself fails, in {record["own"]} ({short})'
        return [Finding('broken', module, text, remedies.restore_package(facts))]
    meaning, command = known or (
        'does not import', remedies.template_of(name.split('.')[0] or module, facts))
    return [Finding('broken', module, f'{meaning} ({short})', remedies.fill_in(command, facts))]


def judge_gpu(facts: Facts) -> list[Finding]:
    """Say which GPU is used; a driver without a GPU that torch sees is worth a note."""
    gpu, cuda = facts.detail('torch', 'gpu'), facts.detail('torch', 'cuda')
    if facts.detail('torch', 'version') is None:
        return []
    if gpu is None and shutil.which('nvidia-smi'):
        return [Finding('note', 'GPU', f'a driver is installed, but torch (CUDA {cuda}) sees none',
                        'nvidia-smi   (a lower CUDA version there: update the driver; None above: '
                        'reinstall torch and torchvision for CUDA as https://pytorch.org says)')]
    return [Finding('ok', 'GPU', f'{gpu}, torch built for CUDA {cuda}' if gpu else
                    'none: training runs on the CPU')]


def examine(python: str, env: dict[str, str] | None = None) -> list[Finding]:
    """Return the whole report on an interpreter, in reading order.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    facts = gather(python, [*NEEDED, *OPTIONAL], env)
    findings = judge_python(facts) + judge_family(facts) + judge_mmcv_lite(facts)
    for module in facts.modules:
        findings += judge_module(module, facts)
    return findings + judge_gpu(facts)


def report(findings: Sequence[Finding]) -> int:
    """Print the findings; return the exit status."""
    broken = [finding.subject for finding in findings if finding.level == 'broken']
    print(*findings, sep='\n')
    print('\nbroken: ' + ', '.join(broken) if broken else '\nNothing is broken.')
    return 1 if broken else 0


def choose_python(given: str | None) -> str:
    """Return the interpreter to examine: the given one, an active environment, .venv, or this one."""
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
