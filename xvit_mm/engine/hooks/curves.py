"""Losses and validation metrics of a whole run, resumed or not, as one picture."""
from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from xvit_mm.registry import HOOKS

from .run_history import TRAINING, History, Series, read_history, record_start

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAIN_METRICS = (r'mAP(_50)?$', r'AP50$', r'm(IoU|Dice|Fscore)$', r'[am]Acc$', r'accuracy/top\d+$')

_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#7A5C00', '#555555')
_MAX_LINES = len(_COLORS)


@HOOKS.register_module()
class CurvesHook(Hook):
    """Draws `work_dir/curves.png` after every validation and at the end of a run.

    The values are those that `LocalVisBackend` keeps below `work_dir`, of earlier runs too: a
    resumed run shows one curve, without the iterations that were rolled back. A validation loss
    (`ClassificationLoss`) stands beside the training loss, and the accuracy on the training images
    (`cal_acc=True` of a classification head) beside that of the validation.

    Args:
        metrics: regular expressions of the validation metrics to draw. Where none matches, all
            metrics are drawn.
        file_name: name of the picture in the work directory.
    """

    priority = 'VERY_LOW'  # after LoggerHook, which writes the values

    def __init__(
        self,
        metrics: Sequence[str] = MAIN_METRICS,
        file_name: str = 'curves.png',
    ) -> None:
        if isinstance(metrics, str):
            raise TypeError(f'metrics is the string {metrics!r}; give a list of patterns')
        if not file_name.endswith('.png'):
            raise ValueError(f'file_name is {file_name!r}; it must end in .png')
        self.metrics = tuple(metrics)
        self.file_name = file_name
        self._is_training = False

    def before_train(self, runner: Runner) -> None:
        self._is_training = True
        record_start(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._is_training:
            self._draw(runner)

    def after_train(self, runner: Runner) -> None:
        self._draw(runner)
        self._is_training = False

    @master_only
    def _draw(self, runner: Runner) -> None:
        history = read_history(runner.work_dir, _iterations_per_val_step(runner))
        history.metrics = main_metrics(history.metrics, self.metrics)
        path = Path(runner.work_dir, self.file_name)
        if not history.losses:
            print_log(f'{self.file_name} shows no losses: none are logged yet, or vis_backends '
                      'lacks LocalVisBackend', 'current', logging.WARNING)
        try:
            draw_curves(history, path, title=path.parent.name)
        except OSError as error:  # a full disk must not end a run
            print_log(f'the curves were not written: {error}', 'current', logging.WARNING)


def draw_curves(history: History, path: Path, *, title: str = '') -> None:
    """Write the curves as a PNG, at once or not at all; without any point nothing is written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses, metrics = (_main_lines(curves) for curves in (history.losses, history.metrics))
    panels = [(draw, curves) for draw, curves in ((_draw_losses, losses), (_draw_metrics, metrics))
              if curves]
    if not panels:
        return
    figure = Figure(figsize=(9, 0.8 + 3.4 * len(panels)), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (draw, curves) in zip(axes, panels):
        draw(axis, curves)
        axis.grid(True, color='0.9')
        axis.set_axisbelow(True)
        axis.spines[['top', 'right']].set_visible(False)
        axis.legend(loc='upper left', bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    axes[-1].set_xlabel('iteration')
    figure.suptitle(title)
    partial = path.with_name(f'.{path.name}.partial')
    figure.savefig(partial, format='png')
    os.replace(partial, path)


def _draw_losses(axis: Axes, curves: dict[str, Series]) -> None:
    for color, (name, series) in zip(_COLORS, curves.items()):
        steps, values = np.array(list(series)), np.array(list(series.values()))
        is_total = name == 'loss'
        axis.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        axis.plot(steps, smooth(values), color=color, label=name, marker=_marker(series),
                  linewidth=2.2 if is_total else 1.4)
    axis.set_ylabel('loss')
    values = np.array([value for series in curves.values() for value in series.values()])
    if values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale('log')
        axis.yaxis.set_major_formatter('{x:g}')


def _draw_metrics(axis: Axes, curves: dict[str, Series]) -> None:
    for color, (name, series) in zip(_COLORS, curves.items()):
        values = list(series.values())
        label = f'{name}\n{values[-1]:.3g} (best {max(values):.3g})'
        axis.plot(list(series), values, color=color, label=label, marker='o', markersize=4)
    axis.set_ylabel('metric')


def _marker(series: Series) -> str | None:
    return 'o' if len(series) == 1 else None


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the mean over a window of about a 25th of the curve, cut off at its ends."""
    reach = len(values) // 50
    window = np.ones(2 * reach + 1)
    padded = np.convolve(values, window)[reach:reach + len(values)]
    return padded / np.convolve(np.ones_like(values), window)[reach:reach + len(values)]


def _main_lines(curves: dict[str, Series]) -> dict[str, Series]:
    """Curves that have points, by iteration; as many as a panel can show, the total loss first."""
    names = sorted((name for name, series in curves.items() if series),
                   key=lambda name: (name != 'loss', name))
    if len(names) == 2 and names[0] == 'loss' and curves['loss'] == curves[names[1]]:
        names.pop()  # the only component is the total
    return {name: dict(sorted(curves[name].items())) for name in names[:_MAX_LINES]}


def main_metrics(metrics: dict[str, Series], patterns: Sequence[str]) -> dict[str, Series]:
    """Return the metrics that a pattern matches, or all, and what was measured in training."""
    chosen = {name for name in metrics if any(re.search(pattern, name) for pattern in patterns)}
    chosen = chosen or set(metrics)
    return {name: series for name, series in metrics.items()
            if name in chosen or name.startswith(TRAINING)}


def _iterations_per_val_step(runner: Runner) -> int | None:
    loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
    if loggers and not loggers[0].log_metric_by_epoch:
        return 1
    is_by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return len(runner.train_dataloader) if is_by_epoch else None
