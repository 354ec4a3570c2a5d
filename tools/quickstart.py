"""Set up the environment if needed, then train and evaluate the demo detector on the CPU.

    python3 tools/quickstart.py

The first time takes 5 to 20 minutes for the set-up and 6 for the demo (2 cores). It may be
interrupted: the same command continues from the last checkpoint. To start the demo afresh:
rm -rf work_dirs/demo
"""
import re
import shlex
import subprocess
import sys

import environment
from bootstrap.install import SetupError
from bootstrap.stacks import ROOT, Stack

WORK_DIR = 'work_dirs/demo'
MAKE_DATA = ['tools/make_demo_data.py']
TRAIN = ['tools/train.py', 'configs/retinanet_crossformer_demo.py', '--work-dir', WORK_DIR]


def run(title: str, arguments: list[str], stack: Stack) -> None:
    """Run one program of the demo; its output goes to the terminal.

    Raises:
        SetupError: it failed.
    """
    text = f'{stack.folder}/bin/python {shlex.join(arguments)}'
    print(f'\n{title}\n$ {text}', flush=True)
    status = subprocess.run([str(stack.python), *arguments], cwd=ROOT,
                            env=stack.variables()).returncode
    if status:
        raise SetupError(f'`{text}` ended with status {status}; its own message is above. '
                         '`python3 tools/doctor.py` examines the environment.')


def last_ap() -> list[str]:
    """Box AP of the last evaluation in the training's logs, nothing before the first."""
    logs = sorted((ROOT / WORK_DIR).glob('*/vis_data/scalars.json'))
    return re.findall(r'bbox_mAP": ([\d.]+)', ''.join(log.read_text() for log in logs))[-1:]


def main() -> int:
    """Set up, run the demo, say where the results are."""
    stack = environment.ensure(environment.make_parser(__doc__).parse_args().stack)
    work_dir = ROOT / WORK_DIR
    run('make the demo images: half a minute', MAKE_DATA, stack)
    run('train RetinaNet with a small CrossFormer: about 6 min on 2 cores',
        TRAIN + ['--resume'] * any(work_dir.glob('epoch_*.pth')), stack)
    for ap in last_ap():
        print(f'\nbox AP (.50:.95) on unseen images: {float(ap):.3f}')
    for name, content in (('pictures', 'predictions beside ground truth'),
                          ('curves.png', 'loss and AP')):
        missing = '' if (work_dir / name).exists() else ', missing'
        print(f'{WORK_DIR}/{name}: {content}{missing}')
    return 0


if __name__ == '__main__':
    sys.exit(environment.run_guarded(main))
