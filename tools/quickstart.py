"""Sets up the environment if needed, then trains and evaluates the demo detector on the CPU.

    python3 tools/quickstart.py

The first time takes 5 to 20 minutes for the set-up and up to 10 for the demo (2 cores). It may be
interrupted: the same command goes on from the last checkpoint. To start the demo afresh:
rm -rf work_dirs/demo
"""
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import List, NamedTuple, Optional

import environment
from bootstrap import stack
from bootstrap.children import SetupError, duration
from bootstrap.project_env import run_variables

WORK_DIR = 'work_dirs/demo'
RESULTS = (
    ('pictures', WORK_DIR + '/pictures', 'prediction beside ground truth'),
    ('curves', WORK_DIR + '/curves.png', 'loss and AP'),
)


class Command(NamedTuple):
    """One program of the demo, run from the project's folder with the Python of .venv."""

    title: str
    takes: str
    arguments: List[str]


COMMANDS = (
    Command('make the demo images', 'some seconds', ['tools/make_demo_data.py']),
    Command('train RetinaNet with a small CrossFormer', '8 min on 2 cores',
            ['tools/train.py', 'configs/retinanet_crossformer_demo.py', '--work-dir', WORK_DIR]),
)


def arguments_of(command: Command) -> List[str]:
    """A command's arguments; a training that was interrupted goes on."""
    begun = (stack.ROOT / WORK_DIR / 'last_checkpoint').exists()
    resume = ['--resume'] if begun and '--work-dir' in command.arguments else []
    return command.arguments + resume


def run(command: Command, python: Path) -> None:
    """Runs one program of the demo; its output goes to the terminal.

    Raises:
        SetupError: it failed.
    """
    arguments = arguments_of(command)
    print('{}: about {}\n$ {} {}'.format(command.title, command.takes, '.venv/bin/python',
                                         ' '.join(arguments)), flush=True)
    start = time.monotonic()
    child = subprocess.Popen([str(python)] + arguments, cwd=str(stack.ROOT), env=run_variables())
    try:
        status = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if status:
        raise SetupError('`.venv/bin/python {}` ended with status {}; its own message stands '
                         'above. `python3 tools/doctor.py` examines the environment.'.format(
                             ' '.join(arguments), status))
    print('done in {}\n'.format(duration(time.monotonic() - start)), flush=True)


def last_ap() -> Optional[float]:
    """Box AP of the last evaluation, from the training's own log."""
    logs = sorted((stack.ROOT / WORK_DIR).glob('*/vis_data/scalars.json'))
    lines = [line for log in logs for line in log.read_text(encoding='utf-8').splitlines()]
    values = [value for line in lines if 'bbox_mAP"' in line
              for name, value in json.loads(line).items() if name.endswith('bbox_mAP')]
    return values[-1] if values else None


def show_results() -> None:
    """Where the results lie, and the AP that was reached."""
    ap = last_ap()
    if ap is not None:
        print('box AP (.50:.95) on unseen images: {:.3f}'.format(ap))
    for title, path, content in RESULTS:
        found = (stack.ROOT / path).exists()
        print('{}: {} ({})'.format(title, path if found else path + ', missing', content))


def main() -> int:
    """Sets up, runs the demo, says where the results are."""
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1:] in (['-h'], ['--help']) else 2
    python = environment.ensure()
    for command in COMMANDS:
        run(command, python)
    show_results()
    return 0


if __name__ == '__main__':
    sys.exit(environment.guarded(main))
