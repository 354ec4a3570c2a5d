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
from typing import NamedTuple

from bootstrap import remedies
from bootstrap.facts import Facts, gather
from bootstrap.stacks import STACKS, families

NEEDED = ('torch', 'torch.from_numpy', 'einops', 'cv2', 'mmengine', 'mmengine.is_installed', 'mmcv',
          'mmcv.ops', 'xvit_mm')
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
    stack = facts.stack or STACKS['onedl']
    text = f'{".".join(map(str, facts.version))} at {facts.python}'
    found = [Finding('ok', 'Python', text)]
    if '{}.{}'.format(*facts.version) not in stack.pythons:
        text += f': the {stack.name} stack does not exist for it'
        found = [Finding('broken', 'Python', text, f'use Python {" or ".join(stack.pythons)}')]
    if os.environ.get('PYTHONPATH'):
        text = os.environ['PYTHONPATH'] + " comes before the environment's own packages"
        found.append(Finding('note', 'PYTHONPATH', text, 'unset PYTHONPATH'))
    return found


def judge_family(facts: Facts) -> list[Finding]:
    """Judge the OpenMMLab packages: exactly one family, best in the tested versions."""
    names, stack = families(facts.distributions), facts.stack
    if stack is None:
        text = 'no OpenMMLab packages: neither of the OneDL nor of the upstream family'
        if names:
            text = ('both families of the OpenMMLab stack are installed and overwrite each other: '
                    f'OneDL ({", ".join(names["onedl"])}), upstream ({", ".join(names["upstream"])})')
        return [Finding('broken', 'family', text, remedies.choose_family(facts))]
    listed, other = [], []
    for name in (*sorted(stack.packages.values()), 'torch', 'torchvision', 'numpy', 'opencv-python'):
        version, tested = facts.distributions.get(name, '').partition('+')[0], stack.pins[name]
        if version not in ('', tested):
            other.append(name)
            version += f' (tested: {tested})'
        listed += [f'{name} {version}'] * bool(version)
    command = '{pip} install --no-deps --no-build-isolation --no-cache-dir '
    remedy = remedies.fill_in(command + ' '.join(stack.pinned(*other)), facts) if other else ''
    text = f'{STACKS[stack.family].name}: {", ".join(listed)}'
    return [Finding('note' if other else 'ok', 'family', text, remedy)]


def judge_mmcv_lite(facts: Facts) -> Finding:
    """Judge the ops where mmcv-lite is installed, which has none, alone or beside mmcv."""
    if not {'mmcv', 'mmdet', 'mmsegmentation'} & set(facts.distributions):
        return Finding('note', 'mmcv.ops', 'mmcv-lite is enough for backbones, necks and heads')
    text = 'mmcv-lite has no compiled ops: detectors need nms and RoIAlign'
    if 'mmcv' in facts.distributions:
        text = 'mmcv-lite is beside mmcv, whose files it shares: to remove one damages the other'
    level = 'broken' if 'error' in facts.modules['mmcv.ops'] else 'note'
    return Finding(level, 'mmcv.ops', text, remedies.fill_in('{mmcv}', facts))


def judge_module(module: str, facts: Facts) -> list[Finding]:
    """Judge whether a module imports; what follows from something reported before is left out."""
    record, package = facts.modules[module], module.partition('.')[0]
    if package != module and 'error' in facts.modules[package]:
        return []
    if module == 'mmcv.ops' and 'mmcv-lite' in facts.distributions:
        return [judge_mmcv_lite(facts)]
    if 'error' not in record:
        text = f'{record.get("version", "")} {record.get("path", "")}'
        return [Finding('ok', module, text.strip())]
    error = record['error']
    cause = next(one for one, other in facts.modules.items() if other.get('error') == error)
    missing = re.search(r"No module named '(\w+)", error)
    command = remedies.install_module(missing.group(1) if missing else module, facts)
    if error.endswith(f"No module named '{package}'"):
        level = 'broken' if module in NEEDED or facts.project_stack else 'note'
        return [Finding(level, module, 'not installed', remedies.fill_in(command, facts))]
    if cause != module:
        return [Finding('broken', module, f'needs {cause}, see there')]
    place = f' in {record["own"]}' if 'own' in record else ''
    meaning, command = remedies.explain_import(module, error + place) or ('does not import', command)
    text = f'{meaning} ({" ".join(error.split())[:300]}{place})'
    return [Finding('broken', module, text, remedies.fill_in(command, facts))]


def judge_gpu(facts: Facts) -> list[Finding]:
    """Say which GPU is used; a driver without a GPU that torch sees is worth a note."""
    torch = facts.modules['torch']
    gpu, cuda = torch.get('gpu'), torch.get('cuda')
    if 'error' in torch:
        return []
    if gpu is None and shutil.which('nvidia-smi'):
        return [Finding('note', 'GPU', f'a driver is installed, but torch (CUDA {cuda}) sees none',
                        'nvidia-smi   (a lower CUDA version there: update the driver; None above: '
                        'reinstall torch and torchvision for CUDA as https://pytorch.org says)')]
    text = f'{gpu}, torch built for CUDA {cuda}' if gpu else 'none: training runs on the CPU'
    return [Finding('ok', 'GPU', text)]


def examine(python: str, env: dict[str, str] | None = None) -> list[Finding]:
    """Return the whole report on an interpreter, in reading order.

    Raises:
        RuntimeError: the interpreter itself does not run.
    """
    facts = gather(python, [*NEEDED, *OPTIONAL], env)
    findings = judge_python(facts) + judge_family(facts)
    for module in facts.modules:
        findings += judge_module(module, facts)
    return findings + judge_gpu(facts)


def choose_python(given: str | None) -> str:
    """Return the interpreter to examine: the given one, an active environment, .venv, or this one."""
    if given:
        return shutil.which(given) or given
    in_environment = sys.prefix != sys.base_prefix or 'CONDA_PREFIX' in os.environ
    own = [stack.python for stack in STACKS.values() if stack.python.exists()]
    return str(own[0]) if own and not in_environment else sys.executable


def main() -> int:
    """Read the arguments, examine, print; return the exit status."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `doctor.py | head` is no error
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--python', help='interpreter to examine')
    try:
        findings = examine(choose_python(parser.parse_args().python))
    except RuntimeError as error:
        remedy = 'if it is the one in .venv: rm -rf .venv && python3 tools/environment.py'
        findings = [Finding('broken', 'Python', str(error), remedy)]
    broken = [finding.subject for finding in findings if finding.level == 'broken']
    print(*findings, sep='\n')
    print(f'\nbroken: {", ".join(broken)}' if broken else '\nNothing is broken.')
    return 1 if broken else 0


if __name__ == '__main__':
    sys.exit(main())
