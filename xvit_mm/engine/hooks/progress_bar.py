"""A live progress bar below the log lines of a terminal."""
from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Sequence
from datetime import timedelta

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from xvit_mm.registry import HOOKS

_open_bar: _Bar | None = None


def close_progress_bar() -> None:
    """End the bar of this process, if one is drawn, and give the terminal's streams back.

    The hook does so after a run, and when the interpreter exits. Call it where an exception of a
    run is caught and something else is printed.
    """
    if _open_bar is not None:
        _open_bar.close()


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
        self._bar: _Bar | None = None

    def before_run(self, runner: Runner) -> None:
        close_progress_bar()
        if is_main_process() and sys.stdout.isatty():
            # Soft wrapping leaves it to the terminal to break long log lines.
            console = Console(file=sys.stdout, force_terminal=True, soft_wrap=True)
            if not console.is_dumb_terminal:
                loggers = (runner.logger, logging.getLogger())
                self._bar = _Bar(console, self.refresh_interval, loggers)

    def after_run(self, runner: Runner) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if self._bar is None:
            return
        if mode != 'train':
            self._bar.start_row(mode, mode, len(getattr(runner, f'{mode}_dataloader')))
        elif isinstance(runner.train_loop, EpochBasedTrainLoop):
            title = f'epoch {runner.epoch + 1}/{runner.max_epochs}'
            self._bar.start_row(mode, title, len(runner.train_dataloader))
        else:
            self._bar.start_row(mode, mode, runner.max_iters, completed=runner.iter)

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: object = None,
        outputs: Sequence | dict | None = None,
        mode: str = 'train',
    ) -> None:
        if self._bar is not None:
            self._bar.update(mode, batch_idx + 1, _describe(runner, mode))

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if self._bar is not None and mode == 'val':
            self._bar.remove_row(mode)


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


class _Bar:
    """Rows of progress at the bottom of a terminal; what others write appears above them.

    There is no refresh thread: a data worker forked while such a thread holds the console's lock
    would hang at its first line of output. The cursor stays visible: a process that is killed
    leaves the terminal as it should be.
    """

    def __init__(
        self,
        console: Console,
        refresh_interval: float,
        loggers: Sequence[logging.Logger],
    ) -> None:
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn('{task.fields[values]}', table_column=Column()),  # wraps if it has to
            console=console,
            auto_refresh=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._refresh_interval = refresh_interval
        self._refreshed_at = 0.0
        self._rows: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}
        self._open(loggers)

    def start_row(self, name: str, title: str, total: int, completed: int = 0) -> None:
        self.remove_row(name)
        self._rows[name] = self._progress.add_task(
            title, total=total, completed=completed, values='')
        self._totals[name] = total
        self._progress.refresh()

    def update(self, name: str, completed: int, values: str) -> None:
        self._progress.update(self._rows[name], completed=completed, values=values)
        now = time.monotonic()
        is_due = now - self._refreshed_at >= self._refresh_interval
        if is_due or completed == self._totals[name]:
            self._progress.refresh()
            self._refreshed_at = now

    def remove_row(self, name: str) -> None:
        if name in self._rows:
            self._progress.remove_task(self._rows.pop(name))

    def close(self) -> None:
        global _open_bar
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._progress.stop()
        atexit.unregister(self.close)
        _open_bar = None

    def _open(self, loggers: Sequence[logging.Logger]) -> None:
        global _open_bar
        stdout, stderr = sys.stdout, sys.stderr
        self._progress.start()
        self._progress.console.show_cursor(True)
        # By now rich stands in for sys.stdout and sys.stderr, but log handlers hold the streams.
        stand_ins = {stdout: sys.stdout, stderr: sys.stderr}
        handlers = [handler for logger in loggers for handler in logger.handlers
                    if isinstance(handler, logging.StreamHandler) and handler.stream in stand_ins]
        self._handlers = [(handler, handler.stream) for handler in handlers]
        for handler, stream in self._handlers:
            handler.setStream(stand_ins[stream])
        _open_bar = self
        atexit.register(self.close)
