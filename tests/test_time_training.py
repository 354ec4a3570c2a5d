"""The tool that divides a training into its parts."""
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from xvit_mm.datasets import make_shapes_dataset
from xvit_mm.utils.config import ConfigError

TOOLS = Path(__file__).parents[1] / 'tools'
sys.path.insert(0, str(TOOLS))
from benchmarks.parts import REST, Clock, time_backward  # noqa: E402


class Sleeper:

    def inner(self):
        time.sleep(0.02)

    def outer(self):
        time.sleep(0.01)
        self.inner()
        time.sleep(0.01)


def test_a_part_within_a_part_counts_once():
    clock, sleeper = Clock(), Sleeper()
    for method in ('inner', 'outer'):
        clock.wrap(sleeper, method, method)
    start = time.perf_counter()
    clock.start()
    sleeper.outer()
    time.sleep(0.01)
    clock.credit('after')
    elapsed = time.perf_counter() - start
    seconds = clock.seconds
    assert set(seconds) == {'inner', 'outer', 'after', REST}
    assert seconds['inner'] >= 0.02 and seconds['outer'] >= 0.02 and seconds['after'] >= 0.01
    assert sum(seconds.values()) <= elapsed


class Slow(torch.autograd.Function):
    """The identity, with a backward pass of a given number of seconds."""

    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(ctx.seconds)
        return grad, None


class Part(nn.Module):

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, maps):
        return [Slow.apply(x, self.seconds) for x in maps]


class Wrapper:

    def backward(self, loss):
        loss.backward()


def test_the_backward_pass_is_divided_among_the_parts():
    model = nn.Module()
    model.backbone, model.neck, head = Part(0.02), Part(0.04), Part(0.06)
    clock, wrapper = Clock(), Wrapper()
    time_backward(clock, model, wrapper)
    x = [torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)]
    loss = sum(head(model.neck(model.backbone(x))))
    clock.start()
    wrapper.backward(loss)
    expected = {'backbone': 0.04, 'neck': 0.08, 'heads and loss': 0.12}
    for name, seconds in expected.items():
        assert clock.seconds[f'{name}, backward'] >= seconds


def test_a_training_and_a_validation_are_divided(tmp_path, monkeypatch, capsys):
    make_shapes_dataset(tmp_path / 'data', num_train=16, num_val=4, seed=0)
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(sys, 'argv', [
        'time_training', 'retinanet_crossformer_demo', '--data-root', str(tmp_path / 'data'),
        '--iterations', '1', '--skip', '1', '--images', '2', '--cfg-options',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False'])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(TOOLS / 'time_training.py'))['main']()
    _, training, validation = capsys.readouterr().out.partition('\nTraining')
    training, _, validation = validation.partition('\nValidation')
    for table, parts in (
            (training, ['data', 'data_preprocessor, forward', 'backbone, forward', 'neck, forward',
                        'bbox_head, forward', 'loss', 'heads and loss, backward', 'neck, backward',
                        'backbone, backward', 'optimizer', 'hooks and the rest']),
            (validation, ['data', 'data_preprocessor, forward', 'backbone, forward',
                          'neck, forward', 'bbox_head, forward', 'predictions from maps',
                          'evaluation', 'hooks and the rest'])):
        rows = [line.split(' | ') for line in table.splitlines() if line.startswith('| ')][1:]
        assert sorted(row[0].removeprefix('| ') for row in rows) == sorted(parts)
        shares = [float(row[2].split('%')[0]) for row in rows]
        assert abs(sum(shares) - 100) < 1 and shares == sorted(shares, reverse=True)
    assert not any(path.suffix == '.pth' for path in tmp_path.rglob('*'))


@pytest.mark.parametrize('iterations, skip, message', [
    (4, 1, 'an epoch has only 4 iterations'), (0, 1, 'give at least 1 and 0'),
    (1, 2, 'the validation has only 2 batches')])
def test_a_run_too_short_to_measure_is_refused(iterations, skip, message, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    check = runpy.run_path(str(TOOLS / 'time_training.py'))['check_lengths']
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    runner = SimpleNamespace(train_loop=loop, train_dataloader=range(4), val_dataloader=range(2))
    with pytest.raises(ConfigError, match=message):
        check(runner, iterations, skip)
    check(runner, 3, 1)
