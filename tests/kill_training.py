"""Kill a training at random moments, resume it each time, and compare with an uninterrupted one.

    python tests/kill_training.py --kills 50

After each kill every checkpoint must be readable, none of the finished ones lost, and the training
must go on from the newest. In the end the weights must be those of an uninterrupted run.
"""
import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from small_training import small_runner

from xvit_mm.checkpoints import CheckpointError, read_checkpoint
from xvit_mm.engine import Runner

WIDTH = 100_000  # checkpoints of some MB, so that many kills find one being written


class Signal(Hook):
    """Tells through a pipe that the training has begun."""

    priority = 'LOWEST'  # after the files of the last kill are cleared away

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def before_train(self, runner: Runner) -> None:
        os.write(self.pipe, b'x')


def start(folder: Path, by_epoch: bool, length: int) -> int:
    """A child that has begun to train; the imports are made once for all of them."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        Runner._log_env = lambda *args: None  # takes longer than the training
        small_runner(folder, Signal(writer), by_epoch=by_epoch, length=length, width=WIDTH,
                     resume=True).train()
        status = 0
    finally:
        os._exit(status)


def steps(folder: Path, pattern: str = r'(?:epoch|iter)_(\d+)\.pth') -> list[int]:
    matches = [re.fullmatch(pattern, path.name) for path in folder.iterdir()]
    return sorted(int(match[1]) for match in matches if match)


def problems(folder: Path, newest: int, best: int) -> list[str]:
    """What is wrong after a kill, given what stood before."""
    found = []
    for path in folder.glob('*.pth'):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            found.append(f'torn: {error}')
    if newest and max(steps(folder), default=0) < newest:
        found.append(f'lost: checkpoint {newest}')
    if best and max(steps(folder, r'best_.*_(\d+)\.pth'), default=0) < best:
        found.append(f'lost: best checkpoint {best}')
    last = folder / 'last_checkpoint'
    if last.exists() and not (folder / last.read_text()).is_file():
        found.append(f'last_checkpoint names {last.read_text()!r}, which is not there')
    return found


def kill_repeatedly(
    folder: Path, kills: int, by_epoch: bool, length: int, seed: int
) -> tuple[list[str], int]:
    """The problems, and how many kills found a file half-written."""
    dice, found, newest, best, writing = random.Random(seed), [], 0, 0, 0
    for number in range(kills):
        child = start(folder, by_epoch, length)
        time.sleep(dice.uniform(0, 1.5))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        writing += any(folder.glob('.*.partial'))
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            found.append(f'kill {number}: it had failed with status {os.WEXITSTATUS(status)}')
        found += [f'kill {number}: {problem}' for problem in problems(folder, newest, best)]
        newest = max(steps(folder), default=0)
        best = max(steps(folder, r'best_.*_(\d+)\.pth'), default=0)
    return found, writing


def finish(folder: Path, by_epoch: bool, length: int) -> dict[str, torch.Tensor]:
    _, status = os.waitpid(start(folder, by_epoch, length), 0)
    if status:
        raise SystemExit(f'the training in {folder} ended with status {status}')
    name = f'{"epoch" if by_epoch else "iter"}_{length}.pth'
    return torch.load(folder / name, weights_only=False)['state_dict']


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--by-iteration', action='store_true', help='instead of by epoch')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    by_epoch = not arguments.by_iteration
    length = (3 if by_epoch else 9) * arguments.kills
    with tempfile.TemporaryDirectory() as root:
        killed, whole = Path(root, 'killed'), Path(root, 'whole')
        killed.mkdir()
        found, writing = kill_repeatedly(killed, arguments.kills, by_epoch, length, arguments.seed)
        reached = max(steps(killed), default=0)
        weights, expected = (finish(folder, by_epoch, length) for folder in (killed, whole))
        if not all(torch.equal(weights[name], expected[name]) for name in expected):
            most = max((weights[n] - expected[n]).abs().max().item() for n in expected)
            found.append(f'the weights differ by {most} from those of an uninterrupted run')
    print(*found, sep='\n', end='\n' if found else '')
    print(f'{arguments.kills} kills, {writing} of them while a file was written; {reached} of '
          f'{length} done by then: {len(found)} failures')
    return bool(found)


if __name__ == '__main__':
    sys.exit(main())
