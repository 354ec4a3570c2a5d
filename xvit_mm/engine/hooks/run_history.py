"""What the runs in a work directory have logged: losses and validation metrics by iteration."""
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.dist import master_only
from mmengine.runner import Runner

TRAINING = 'training '  # before the name of an accuracy on training images
_START_FILE = 'start.json'  # beside the scalars: the iteration that a run went on from

Series = dict[int, float]  # iteration to value


@dataclass
class History:
    """What a run has logged so far, by name and iteration."""

    losses: dict[str, Series] = field(default_factory=dict)
    metrics: dict[str, Series] = field(default_factory=dict)

    def forget_after(self, iteration: int) -> None:
        """Drop what was logged beyond `iteration`."""
        for curves in (self.losses, self.metrics):
            for name, series in curves.items():
                curves[name] = {step: value for step, value in series.items() if step <= iteration}


def read_history(work_dir: str | os.PathLike, iterations_per_val_step: int | None = 1) -> History:
    """Read the scalars of all runs in `work_dir`, the oldest first; a later run counts.

    Args:
        iterations_per_val_step: what one step of a validation's line stands for: 1 where metrics
            are logged by iteration, the length of an epoch where they are logged by epoch. With
            None a validation is placed at the last training iteration logged before it.
    """
    history, last = History(), 0
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):  # named after their time
        start = next(_json_lines(path.with_name(_START_FILE)), {}).get('iter')
        if start is not None:
            history.forget_after(start)
        iteration = None
        for line in _json_lines(path):
            if _is_train(line):
                iteration = line['step']
                if iteration <= last:  # resumed without a record of where
                    history.forget_after(iteration - 1)
                last = iteration
                _add(history.losses, _scalars(line, 'train/', wants_loss=True), iteration)
                _add(history.metrics, _training_accuracies(line), iteration)
            else:
                scale = iterations_per_val_step
                done = line.get('step', 0) * scale if scale else iteration
                if done:  # a validation apart from any training has step 0
                    _add(history.losses, _scalars(line, 'val/', wants_loss=True), done)
                    _add(history.metrics, _scalars(line, 'val/', wants_loss=False), done)
    return history


@master_only
def record_start(runner: Runner) -> None:
    """Note the iteration at which a run starts, 0 or where it was resumed."""
    path = Path(runner.log_dir, 'vis_data', _START_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'iter': runner.iter}))


def _json_lines(path: Path) -> Iterator[dict]:
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off when the run was killed
            continue
        if isinstance(line, dict):
            yield line


def _is_train(line: dict) -> bool:
    return 'iter' in line and 'step' in line


def _scalars(line: dict, prefix: str, *, wants_loss: bool) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        name = key.removeprefix(prefix)
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        if not is_number or name in ('step', 'iter', 'epoch', 'time', 'data_time', 'memory'):
            continue
        # COCO reports -1 where a metric is undefined.
        if ('loss' in name) == wants_loss and (wants_loss or value != -1):
            yield name, value


def _training_accuracies(line: dict) -> Iterator[tuple[str, float]]:
    for name, value in _scalars(line, 'train/', wants_loss=False):
        if name.startswith('accuracy'):
            yield f'{TRAINING}{name}', value


def _add(curves: dict[str, Series], scalars: Iterator[tuple[str, float]], iteration: int) -> None:
    for name, value in scalars:
        curves.setdefault(name, {})[iteration] = value
