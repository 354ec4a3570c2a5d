"""The progress bar, on terminals and elsewhere."""
import io
import os
import sys
from pathlib import Path

import pytest
from toy_runner import ToyModel, toy_runner

from xvit_mm.engine.hooks import close_progress_bar

REPOSITORY = Path(__file__).resolve().parents[1]
END = '\n\x1b[?25h'  # a new line, and the cursor shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '150')
    yield Terminal()
    close_progress_bar()


def use(terminal, monkeypatch):
    """In the body of a test: pytest sets sys.stdout itself before it."""
    monkeypatch.setattr(sys, 'stdout', terminal)


def test_progress_bar_is_silent_off_a_terminal(monkeypatch, tmp_path):
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich would take this for a terminal
    runner = toy_runner(tmp_path, 'ProgressBarHook')
    runner.logger.handlers.clear()
    output = io.StringIO()
    monkeypatch.setattr(sys, 'stdout', output)
    runner.train()
    assert output.getvalue() == ''


def test_progress_bar_is_silent_on_other_ranks(monkeypatch, terminal, tmp_path):
    use(terminal, monkeypatch)
    monkeypatch.setattr('xvit_mm.engine.hooks.progress_bar.is_main_process', lambda: False)
    toy_runner(tmp_path, 'ProgressBarHook').train()
    assert '━' not in terminal.getvalue()


def test_progress_bar_is_silent_on_a_dumb_terminal(monkeypatch, terminal, tmp_path):
    use(terminal, monkeypatch)
    monkeypatch.setenv('TERM', 'dumb')
    toy_runner(tmp_path, 'ProgressBarHook').train()
    assert '━' not in terminal.getvalue() and '\x1b[?25' not in terminal.getvalue()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_progress_bar_shows_the_run_on_a_terminal(monkeypatch, terminal, tmp_path, by_epoch):
    use(terminal, monkeypatch)
    length = 2 if by_epoch else 8
    toy_runner(tmp_path, 'ProgressBarHook', by_epoch=by_epoch, length=length).train()
    output = terminal.getvalue()
    for text in ('epoch 1/2', 'epoch 2/2', '5/5') if by_epoch else ('train', '8/8'):
        assert text in output
    for text in ('val', '━', 'loss ', 'lr 1.0e-04', 's/it', 'data ', 'eta 0:00:00'):
        assert text in output
    assert sys.stdout is terminal and output.endswith(END)


def test_log_lines_stand_above_the_bar_in_one_piece(monkeypatch, terminal, tmp_path):
    use(terminal, monkeypatch)
    runner = toy_runner(tmp_path, 'ProgressBarHook')
    message = 'a long line ' * 40
    runner.register_hook(LogAtEachStep(message), priority='LOWEST')
    runner.train()
    lines = terminal.getvalue().split('\n')
    assert sum(line.rstrip().endswith(message.rstrip()) for line in lines) == 10
    # While the bar is drawn, what is logged begins where the bar began, with lines cleared.
    assert all('\x1b[2K' in line for line in lines if message in line)


def test_other_handlers_are_given_back(monkeypatch, terminal, tmp_path):
    use(terminal, monkeypatch)
    runner = toy_runner(tmp_path, 'ProgressBarHook')
    before = [handler.stream for handler in runner.logger.handlers]
    runner.train()
    assert [handler.stream for handler in runner.logger.handlers] == before
    assert terminal in before


@pytest.mark.parametrize('failure', [RuntimeError('toy'), KeyboardInterrupt()])
def test_closing_after_a_failure_restores_the_terminal(monkeypatch, terminal, tmp_path, failure):
    use(terminal, monkeypatch)
    runner = toy_runner(tmp_path, 'ProgressBarHook', model=ToyModel(failure))
    with pytest.raises(type(failure)):
        runner.train()
    assert sys.stdout is not terminal
    close_progress_bar()
    assert sys.stdout is terminal and terminal.getvalue().endswith(END)
    assert terminal in [handler.stream for handler in runner.logger.handlers]
    close_progress_bar()


def test_the_next_run_closes_the_bar_of_a_failed_one(monkeypatch, terminal, tmp_path):
    use(terminal, monkeypatch)
    failing = toy_runner(tmp_path / 'a', 'ProgressBarHook', model=ToyModel(RuntimeError('toy')))
    with pytest.raises(RuntimeError):
        failing.train()
    toy_runner(tmp_path / 'b', 'ProgressBarHook').train()
    assert sys.stdout is terminal


@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo-terminals')
def test_ctrl_c_on_a_real_terminal_leaves_it_usable(tmp_path):
    import pty
    import signal
    code = ('import sys; sys.path[:0] = sys.argv[2:]; import toy_runner; '
            'toy_runner.toy_runner(sys.argv[1], "ProgressBarHook", by_epoch=False, '
            'length=10**6, log_interval=10**6).train()')
    child, terminal = pty.fork()
    if child == 0:
        # Whoever started the tests in the background may have had them ignore it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.alarm(180)
        os.environ['TERM'] = 'xterm'
        os.execv(sys.executable, [sys.executable, '-c', code, str(tmp_path), str(REPOSITORY),
                                  str(REPOSITORY / 'tests')])
    output = b''
    while chunk := _read(terminal):
        interrupt = b'loss' in chunk and b'KeyboardInterrupt' not in output + chunk
        output += chunk
        if interrupt:
            os.kill(child, signal.SIGINT)
    os.waitpid(child, 0)
    assert b'KeyboardInterrupt' in output
    assert output.rfind(b'\x1b[?25h') > output.rfind(b'\x1b[?25l') >= 0  # the cursor is shown
    # The prompt starts on a line of its own. The traceback comes last if a write was interrupted.
    assert output.replace(b'\r', b'').endswith((END.encode(), b'KeyboardInterrupt\n'))


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end is closed
        return b''


class LogAtEachStep:
    """Not a hook of the package: logs a message after each training iteration."""

    def __new__(cls, message):
        from mmengine.hooks import Hook

        class _Hook(Hook):
            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                runner.logger.info(message)
        return _Hook()
