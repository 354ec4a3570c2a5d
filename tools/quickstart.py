"""Set up the environment if needed, then train and evaluate the demo detector on the CPU.

    python3 tools/quickstart.py

The first time takes 5 to 20 minutes for the set-up and up to 10 for the demo (2 cores). It may be
interrupted: the same command continues from the last checkpoint. To start the demo afresh:
rm -rf work_dirs/demo
"""
import argparse
import json
import shlex
import subprocess
import sys
import time

import environment
from bootstrap.install import SetupError, duration
from bootstrap.stacks import ROOT, Stack

WORK_DIR = 'work_dirs/demo'
MAKE_DATA = ['tools/make_demo_data.py']
TRAIN = ['tools/train.py', 'configs/retinanet_crossformer_demo.py', '--work-dir', WORK_DIR]


def run(title: str, takes: str, arguments: list[str], stack: Stack) -> None:
    """Run one program of the demo; its output goes to the terminal.

    Raises:
        SetupError: it failed.
    """
    text = f'{stack.folder}/bin/python {shlex.join(arguments)}'
    print(f'{title}: about {takes}\n$ {text}', flush=True)
    start = time.monotonic()
    with subprocess.Popen([str(stack.python), *arguments], cwd=ROOT,
                          env=stack.variables()) as child:
        try:
            status = child.wait()
        except BaseException:
            child.terminate()
            raise
    if status:
        raise SetupError(f'`{text}` ended with status {status}; its own message is above. '
                         '`python3 tools/doctor.py` examines the environment.')
    print(f'done in {duration(time.monotonic() - start)}\n', flush=True)


def last_ap() -> float | None:
    """Box AP of the last evaluation, from the training's own log."""
    logs = sorted((ROOT / WORK_DIR).glob('*/vis_data/scalars.json'))
    lines = [line for log in logs for line in log.read_text().splitlines() if 'bbox_mAP"' in line]
    values = [value for name, value in json.loads(lines[-1]).items()
              if name.endswith('bbox_mAP')] if lines else []
    return values[-1] if values else None


def show_results() -> None:
    """Where the results are, and the AP that was reached."""
    ap = last_ap()
    if ap is not None:
        print(f'box AP (.50:.95) on unseen images: {ap:.3f}')
    for title, name, content in (('pictures', 'pictures', 'prediction beside ground truth'),
                                 ('curves', 'curves.png', 'loss and AP')):
        missing = '' if (ROOT / WORK_DIR / name).exists() else ', missing'
        print(f'{title}: {WORK_DIR}/{name}{missing} ({content})')


def main() -> int:
    """Set up, run the demo, say where the results are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment.add_stack(parser)
    stack = environment.ensure(parser.parse_args().stack)
    begun = any((ROOT / WORK_DIR).glob('epoch_*.pth'))
    run('make the demo images', 'some seconds', MAKE_DATA, stack)
    run('train RetinaNet with a small CrossFormer', '8 min on 2 cores',
        TRAIN + ['--resume'] * begun, stack)
    show_results()
    return 0


if __name__ == '__main__':
    sys.exit(environment.guarded(main))
