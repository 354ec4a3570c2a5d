"""The hooks that show a run, driven by mmengine's runner and a toy model."""
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from xvit_mm.engine import ClassificationLoss
from xvit_mm.engine.hooks import MultiScaleHook, close_progress_bar
from xvit_mm.engine.hooks.curves import MAIN_METRICS, draw_curves, main_metrics, read_history

REPOSITORY = Path(__file__).resolve().parents[1]
END = '\n\x1b[?25h'  # a new line, and the cursor shown


class ToyModel(BaseModel):
    """A line fit; raises `failure` at a chosen training step."""

    def __init__(self, failure=None, fail_at=4):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.failure, self.fail_at, self.steps = failure, fail_at, 0

    def forward(self, inputs, targets, mode='tensor'):
        difference = self.layer(inputs) - targets
        if mode != 'loss':
            return [difference]
        self.steps += 1
        if self.failure is not None and self.steps == self.fail_at:
            raise self.failure
        return {'loss_fit': difference.square().mean(), 'loss_size': difference.abs().mean()}


class ToyData(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {'inputs': torch.ones(2) * index, 'targets': torch.ones(1)}


class ToyMetric(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {'bbox_mAP': 0.25, 'bbox_mAP_s': -1.0}


def toy_runner(work_dir, *hooks, model=None, by_epoch=True, length=2, resume=False, log_interval=1):
    train_cfg = (dict(by_epoch=True, max_epochs=length, val_interval=1) if by_epoch else
                 dict(by_epoch=False, max_iters=length, val_interval=4))
    logger = dict(type='LoggerHook', interval=log_interval, log_metric_by_epoch=by_epoch)
    return Runner(
        model or ToyModel(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(ToyData(), batch_size=2),
        val_dataloader=DataLoader(ToyData(), batch_size=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-4)),
        train_cfg=train_cfg,
        val_cfg={},
        val_evaluator=[ToyMetric()],
        default_hooks=dict(
            logger=logger,
            checkpoint=dict(
                type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4),
        ),
        custom_hooks=[dict(type=f'xvit_mm.{hook}') for hook in hooks],
        log_processor=dict(by_epoch=by_epoch),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        resume=resume,
        experiment_name=f'toy_{os.urandom(4).hex()}',
    )


def test_importing_the_engine_imports_no_openmmlab_family():
    # What the package itself imports is pinned elsewhere; here it is what the hooks add.
    code = ('import sys, xvit_mm; before = set(sys.modules); import xvit_mm.engine; '
            'print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    assert not {'mmdet', 'mmseg', 'mmpretrain', 'matplotlib'} & set(eval(done.stdout))


# Progress bar ------------------------------------------------------------------------------------


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
    code = ('import sys; sys.path[:0] = sys.argv[2:]; import test_hooks; '
            'test_hooks.toy_runner(sys.argv[1], "ProgressBarHook", by_epoch=False, '
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
    assert output.replace(b'\r', b'').endswith(END.encode())


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


# Curves ------------------------------------------------------------------------------------------


def test_a_resumed_run_shows_one_continuous_curve(tmp_path):
    toy_runner(tmp_path, 'CurvesHook', length=2).train()
    first = (tmp_path / 'curves.png').read_bytes()
    toy_runner(tmp_path, 'CurvesHook', length=4, resume=True).train()
    history = read_history(tmp_path, 5)
    assert list(history.losses['loss']) == list(range(1, 21))
    assert history.metrics == {'toy/bbox_mAP': dict.fromkeys((5, 10, 15, 20), 0.25)}
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None
    assert (tmp_path / 'curves.png').read_bytes() != first
    assert not list(tmp_path.glob('.curves*'))


def test_metrics_of_a_run_by_iteration_stand_at_their_iteration(tmp_path):
    toy_runner(tmp_path, 'CurvesHook', by_epoch=False, length=8).train()
    assert list(read_history(tmp_path, 1).metrics['toy/bbox_mAP']) == [4, 8]
    assert (tmp_path / 'curves.png').is_file()


def test_what_was_logged_right_before_the_resumed_iteration_is_kept(tmp_path):
    settings = dict(by_epoch=False, log_interval=3)
    toy_runner(tmp_path, 'CurvesHook', length=4, **settings).train()
    toy_runner(tmp_path, 'CurvesHook', length=9, resume=True, **settings).train()
    history = read_history(tmp_path, 1)
    assert list(history.losses['loss']) == [3, 6, 9]
    assert list(history.metrics['toy/bbox_mAP']) == [4, 8, 9]


def write_run(work_dir, name, lines):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(lines))


def train_line(step, loss, prefix=''):
    return json.dumps({f'{prefix}loss': loss, 'lr': 0.1, 'time': 1.0, 'iter': step, 'step': step})


def val_line(step, value):
    return json.dumps({'coco/bbox_mAP': value, 'coco/bbox_mAP_s': -1.0, 'time': 1.0, 'step': step})


def test_iterations_that_were_rolled_back_are_forgotten(tmp_path):
    # The first run died at 55 after a checkpoint at 30; the second logs more often.
    write_run(tmp_path, '20250101_000000',
              [train_line(step, 1.0) for step in (10, 20, 30)] + [val_line(1, 0.1)]
              + [train_line(35, 9.0), val_line(2, 0.9), train_line(55, 9.0)])
    write_run(tmp_path, '20250102_000000',
              [train_line(step, 2.0) for step in (34, 38, 42)] + ['{"loss": 3.0, "st'])
    history = read_history(tmp_path, 30)
    assert history.losses['loss'] == {10: 1.0, 20: 1.0, 30: 1.0, 34: 2.0, 38: 2.0, 42: 2.0}
    assert history.metrics == {'coco/bbox_mAP': {30: 0.1}}


def test_a_run_begun_anew_in_the_same_folder_replaces_the_old_one(tmp_path):
    write_run(tmp_path, '20250101_000000', [train_line(step, 1.0) for step in (10, 20, 30)])
    write_run(tmp_path, '20250101_000001', [train_line(10, 2.0)])
    assert read_history(tmp_path).losses == {'loss': {10: 2.0}}


def test_prefixes_infinities_and_standalone_validations_are_dealt_with(tmp_path):
    losses = {10: 1.0, 20: float('nan')}
    lines = [train_line(step, loss, 'train/') for step, loss in losses.items()]
    write_run(tmp_path, '20250101_000000', [val_line(0, 0.7), *lines])
    history = read_history(tmp_path, 1)
    assert history.losses == {'loss': {10: 1.0}} and not history.metrics


def test_validation_loss_and_training_accuracy_stand_beside_their_counterparts(tmp_path):
    lines = []
    for epoch in (1, 2):
        lines.append(json.dumps({'loss': 2.0 / epoch, 'accuracy_top-1': 30.0 * epoch, 'lr': 0.1,
                                 'iter': 10 * epoch, 'step': 10 * epoch}))
        lines.append(json.dumps({'accuracy/top1': 25.0 * epoch, 'val_loss': 2.5 / epoch,
                                 'step': epoch}))
    write_run(tmp_path, '20250101_000000', lines)
    history = read_history(tmp_path, 10)
    assert history.losses == {'loss': {10: 2.0, 20: 1.0}, 'val_loss': {10: 2.5, 20: 1.25}}
    assert history.metrics == {'training accuracy_top-1': {10: 30.0, 20: 60.0},
                               'accuracy/top1': {10: 25.0, 20: 50.0}}
    # What belongs to the training is drawn whatever metrics of the validation are asked for.
    assert set(main_metrics(history.metrics, MAIN_METRICS)) == set(history.metrics)
    assert set(main_metrics({'a': {}, 'b': {}, **history.metrics}, ['a$'])) == {
        'a', 'training accuracy_top-1'}
    draw_curves(history, tmp_path / 'curves.png')
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None


@pytest.mark.parametrize('loss', [None, dict(
    type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original')])
def test_validation_loss_is_that_of_the_logits(loss):
    logits = 3 * torch.randn(5, 4, generator=torch.manual_seed(0))
    logits[0] = torch.tensor([500., 0, 0, 0])  # the other probabilities underflow
    labels = torch.tensor([0, 3, 1, 2, 2])
    metric = ClassificationLoss(loss)
    for part in (slice(0, 2), slice(2, 5)):
        metric.process(None, [dict(pred_score=score, gt_label=label[None]) for score, label in
                              zip(logits[part].softmax(1), labels[part])])
    smoothing = 0.1 if loss else 0.
    expected = F.cross_entropy(logits[1:], labels[1:], label_smoothing=smoothing, reduction='sum')
    # The first: log 1 = 0 for its class, and the smallest normal number for the others.
    expected += smoothing / 4 * 3 * -math.log(torch.finfo(torch.float32).tiny)
    assert metric.evaluate(5) == {'val_loss': pytest.approx(expected.item() / 5, rel=1e-5)}


def test_nothing_to_draw_writes_no_picture(tmp_path):
    draw_curves(read_history(tmp_path), tmp_path / 'curves.png')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, is_main', [
    ('coco/segm_mAP', True), ('coco/bbox_mAP_50', True), ('mIoU', True), ('aAcc', True),
    ('accuracy/top1', True), ('pascal_voc/mAP', True), ('pascal_voc/AP50', True),
    ('coco/bbox_mAP_s', False), ('coco/bbox_mAP_75', False), ('loss', False),
])
def test_main_metrics_of_each_task_are_drawn(name, is_main):
    import re
    assert any(re.search(pattern, name) for pattern in MAIN_METRICS) == is_main


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    ({'metrics': 'mAP'}, TypeError, "'mAP'"),
    ({'file_name': 'curves.jpg'}, ValueError, 'curves.jpg'),
])
def test_curves_hook_refuses_wrong_arguments(arguments, error, message):
    from xvit_mm.engine.hooks import CurvesHook
    with pytest.raises(error, match=message):
        CurvesHook(**arguments)


# Sizes of batches -----------------------------------------------------------------------------


class SizesModel(BaseModel):
    """Notes the size of each batch, and whether it is of a training run."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, inputs, mode='tensor'):
        self.seen.append((mode, tuple(inputs.shape[2:]), inputs.mean().item()))
        return dict(loss=self.weight * inputs.mean()) if mode == 'loss' else [inputs]


def train_at_sizes(work_dir, *, epochs=2, hook=None, **settings):
    from mmengine.optim import OptimWrapper
    model = SizesModel()
    images = [dict(inputs=torch.full((3, 32, 32), 0.5)) for _ in range(6)]
    loader = DataLoader(images, batch_size=2)
    runner = Runner(
        model, str(work_dir), train_dataloader=loader, val_dataloader=loader, val_cfg={},
        val_evaluator=[ToyMetric()], train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)),
        custom_hooks=[hook or MultiScaleHook(sizes=(16, 24, 32, 40))], experiment_name=str(work_dir),
        default_scope='mmengine', **settings)
    runner.train()
    return model.seen


def test_training_batches_have_the_size_of_their_iteration_and_validation_its_own(tmp_path):
    hook = MultiScaleHook(sizes=(16, 24, 32, 40), interval=2)
    expected = [hook.size_at(i) for i in range(12)]
    assert len(set(expected)) > 2 and expected[::2] == expected[1::2]
    seen = train_at_sizes(tmp_path, epochs=4, hook=hook)
    training = [size for mode, size, _ in seen if mode == 'loss']
    assert training == [(side, side) for side in expected]
    assert {size for mode, size, _ in seen if mode != 'loss'} == {(32, 32)}
    assert all(mean == pytest.approx(0.5) for *_, mean in seen)


def test_a_resumed_training_goes_on_with_the_same_sizes(tmp_path):
    whole = train_at_sizes(tmp_path / 'whole', epochs=3)
    first = train_at_sizes(tmp_path / 'parts', epochs=1)
    second = train_at_sizes(tmp_path / 'parts', epochs=3, resume=True)
    assert first + second == whole


@pytest.mark.parametrize('settings, message', [
    (dict(sizes=()), r'sizes=\[\]'), (dict(sizes=(160, 0)), r'sizes=\[160, 0\]'),
    (dict(sizes=(160.5,)), 'give whole numbers'), (dict(interval=0), r'interval=\[0\]'),
])
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleHook(**settings)
