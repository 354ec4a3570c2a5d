"""A live progress bar below the log lines of a terminal."""
from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from xvit_mm.registry import HOOKS

_at_close = ExitStack()  # what gives the terminal back, while a bar is drawn
atexit.register(_at_close.close)


def close_progress_bar() -> None:
    """End the bar of this process, if one is drawn, and give the terminal's streams back.

    The hook does so after a run, and when the interpreter exits. Call it where an exception of a
    run is caught and something else is printed.
    """
    _at_close.close()


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Draws epoch, iteration, loss, learning rate, times and ETA of a run on a terminal.

    Where standard output is not a terminal (or `TERM=dumb`), and on ranks other than 0, it does
    nothing at all: mmengine's `LoggerHook` writes its lines there. On a terminal these lines appear
    above the bar. The times come from mmengine's `IterTimerHook`.

    Args:
        refresh_interval: least time between two drawings, in seconds.
    """

    priority = 'VERY_LOW'  # the values of the iteration are in the message hub by then

    def __init__(self, refresh_interval: float = 0.1) -> None:
        if refresh_interval < 0:
            raise ValueError(f'refresh_interval is {refresh_interval}; it must be at least 0 s')
        self.refresh_interval = refresh_interval
        self._refreshed_at = 0.0
        self._progress: Progress | None = None
        self._rows: dict[str, TaskID] = {}

    def before_run(self, runner: Runner) -> None:
        close_progress_bar()
        self._progress, self._rows = None, {}
        if is_main_process() and sys.stdout.isatty():
            # Soft wrapping leaves it to the terminal to break long log lines.
            console = Console(file=sys.stdout, force_terminal=True, soft_wrap=True)
            if not console.is_dumb_terminal:
                self._progress = _open(console, (runner.logger, logging.getLogger()))

    def after_run(self, runner: Runner) -> None:
        if self._progress is not None:
            close_progress_bar()
            self._progress = None

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if self._progress is None:
            return
        self._remove_row(mode)
        title, total, completed = mode, len(getattr(runner, f'{mode}_dataloader')), 0
        if mode == 'train' and isinstance(runner.train_loop, EpochBasedTrainLoop):
            title = f'epoch {runner.epoch + 1}/{runner.max_epochs}'
        elif mode == 'train':
            total, completed = runner.max_iters, runner.iter
        self._rows[mode] = self._progress.add_task(
            title, total=total, completed=completed, values='')
        self._progress.refresh()

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: Sequence | dict | None = None,
        mode: str = 'train',
    ) -> None:
        if self._progress is None:
            return
        self._progress.update(
            self._rows[mode], completed=batch_idx + 1, values=_describe(runner, mode))
        now = time.monotonic()
        if now - self._refreshed_at >= self.refresh_interval or self._progress.finished:
            self._progress.refresh()
            self._refreshed_at = now

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if self._progress is not None and mode == 'val':
            self._remove_row(mode)

    def _remove_row(self, mode: str) -> None:
        if mode in self._rows:
            self._progress.remove_task(self._rows.pop(mode))


def _describe(runner: Runner, mode: str) -> str:
    """What stands to the right of the bar: ETA, loss, learning rate, times."""
    scalars = runner.message_hub.log_scalars
    formats = {
        'loss': 'loss {:.4f}',
        'lr': 'lr {:.1e}',
        'time': '{:.3f} s/it',
        'data_time': 'data {:.3f}',
    }
    eta = runner.message_hub.runtime_info.get('eta')
    parts = [] if eta is None else [f'eta {timedelta(seconds=int(eta))}']
    parts += [text.format(scalars[f'{mode}/{name}'].mean(10))
              for name, text in formats.items() if f'{mode}/{name}' in scalars]
    return '  '.join(parts)


def _open(console: Console, loggers: Sequence[logging.Logger]) -> Progress:
    """Draw at the bottom of a terminal; what others write appears above.

    There is no refresh thread: a data worker forked while such a thread holds the console's lock
    would hang at its first line of output. The cursor stays visible: a process that is killed
    leaves the terminal as it should be.
    """
    progress = Progress(
        TextColumn('{task.description}'),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn('{task.fields[values]}', table_column=Column()),  # wraps if it has to
        console=console,
        auto_refresh=False,
        redirect_stderr=sys.stderr.isatty(),
    )
    stdout, stderr = sys.stdout, sys.stderr
    progress.start()
    _at_close.callback(progress.stop)
    console.show_cursor(True)
    # By now rich stands in for sys.stdout and sys.stderr, but log handlers hold the streams.
    stand_ins = {stdout: sys.stdout, stderr: sys.stderr}
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream in stand_ins:
            _at_close.callback(handler.setStream, handler.stream)
            handler.setStream(stand_ins[handler.stream])
    return progress
