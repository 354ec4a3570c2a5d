"""Losses and metrics of several runs in one picture and one table."""
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from xvit_mm.engine.hooks.curves import MAIN_METRICS, main_metrics, smooth
from xvit_mm.engine.hooks.run_history import History, read_history
from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.files import check_writable, replaced_whole

LOSS = 'loss'
_LOG = 100  # largest by smallest loss, from which the scale is logarithmic


def read_runs(work_dirs: Sequence[str | Path]) -> dict[str, History]:
    """What runs have logged, by a short label for each: the folder's name, or more of its path.

    Raises:
        ConfigError: a folder does not exist, is named twice, or holds no training log.
    """
    paths = [Path(work_dir).resolve() for work_dir in work_dirs]
    if len(set(paths)) < len(paths):
        raise ConfigError('a work dir is named twice')
    histories = []
    for work_dir, path in zip(work_dirs, paths):
        if not path.is_dir():
            raise ConfigError(f'{str(work_dir)!r} is not a folder: give the work dirs of runs')
        history = read_history(path, None)
        if not history.losses and not history.metrics:
            raise ConfigError(
                f'{str(work_dir)!r} holds no training log: */vis_data/scalars.json is written '
                'below the work dir by LocalVisBackend')
        histories.append(history)
    return dict(zip(_labels(paths), histories))


def draw_comparison(
    runs: dict[str, History], path: str | Path, patterns: Sequence[str] = MAIN_METRICS
) -> None:
    """Write one PNG: a panel for the loss and one for each metric, a line for each run.

    Args:
        runs: as `read_runs` gives them.
        path: of the picture.
        patterns: regular expressions of the metrics to draw; all, where none matches.

    Raises:
        ConfigError: the path has another suffix, or a pattern is not a regular expression.
        FolderError: its folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != '.png':
        raise ConfigError(f'--out {str(path)!r}: the name must end in .png')
    check_writable(path.parent, '--out')
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    names = [LOSS] * any(LOSS in run.losses for run in runs.values()) + metric_names(runs, patterns)
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(6.5 * columns, 0.8 + 3.6 * rows), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, name in zip(panels, names):
        for number, (label, run) in enumerate(runs.items()):
            series = (run.losses if name == LOSS else run.metrics).get(name)
            if not series:
                continue
            steps, values = np.array(sorted(series)), np.array([series[s] for s in sorted(series)])
            color = f'C{number % 10}'
            if name == LOSS:
                panel.plot(steps, values, color=color, alpha=0.2, linewidth=1)
                values = smooth(values)
            panel.plot(steps, values, color=color, label=label,
                       marker='o' if name != LOSS or len(steps) == 1 else None, markersize=4)
        panel.set_title(name)
        panel.set_xlabel('iteration')
        panel.grid(True, color='0.9')
        panel.spines[['top', 'right']].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
        values = np.concatenate([line.get_ydata() for line in panel.get_lines()])
        if name == LOSS and values.min() > 0 and values.max() > _LOG * values.min():
            panel.set_yscale('log')
    for panel in panels[len(names):]:
        panel.remove()
    with replaced_whole(path) as partial:
        figure.savefig(partial, format='png')


def comparison_table(
    runs: dict[str, History], patterns: Sequence[str] = MAIN_METRICS
) -> Table:
    """A row for each run: iterations, the last loss, and each metric at the end and at its best."""
    names = metric_names(runs, patterns)
    table = Table('run', 'iterations', 'loss', *[f'{name} (best)' for name in names])
    for label, run in runs.items():
        steps = [step for curves in (run.losses, run.metrics)
                 for series in curves.values() for step in series]
        cells = [_last(run.losses.get(LOSS, {}))]
        for name in names:
            series = run.metrics.get(name, {})
            best = min if LOSS in name else max
            cells.append(f'{_last(series)} ({best(series.values()):.4g})' if series else '')
        table.add_row(label, str(max(steps, default=0)), *cells)
    return table


def metric_names(runs: dict[str, History], patterns: Sequence[str]) -> list[str]:
    """The metrics that match the patterns in any of the runs, sorted; all, if none does."""
    try:
        chosen = [name for run in runs.values() for name in main_metrics(run.metrics, patterns)]
    except re.error as error:
        raise ConfigError(
            f'--metrics {" ".join(patterns)}: not a regular expression ({error})') from None
    return sorted(set(chosen))


def _last(series: dict[int, float]) -> str:
    return f'{series[max(series)]:.4g}' if series else ''


def _labels(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    for number in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ['/'.join(path.parts[-number:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return labels
