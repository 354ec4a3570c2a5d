"""Resuming with another config: what goes on, what is named, what is refused."""
import pytest
import small_training
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from small_training import Losses, quick, small_runner

from xvit_mm.checkpoints import CheckpointError
from xvit_mm.engine.resuming import check_optimizer

__all__ = ['quick']  # a fixture


@pytest.mark.parametrize('by_epoch, first, then', [
    (True, 2, 4), (True, 4, 2), (False, 2, 4),
], ids=['larger', 'smaller', 'by iteration'])
def test_another_batch_size_goes_on_with_the_samples_that_are_left(
        by_epoch, first, then, tmp_path, monkeypatch):
    class Samples(Losses):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.extend(data_batch['inputs'][:, 0].int().tolist())

    def run(folder, batch_size, stop_after=None, **settings):
        monkeypatch.setattr(small_training, 'BATCH_SIZE', batch_size)
        small_runner(folder, Samples(stop_after=stop_after), by_epoch=by_epoch,
                     length=1 if by_epoch else 20 // batch_size,
                     checkpoint=dict(by_epoch=False, interval=8 // first), **settings).train()

    seen: list[int] = []
    run(tmp_path / 'whole', then)
    expected, seen = seen[8:], []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'cut', first, stop_after=8 // first)
    assert len(seen) == 8
    seen = []
    run(tmp_path / 'cut', then, resume=True)
    # Iterations are counted on, so that only one of five is left.
    assert seen == (expected if by_epoch else expected[:4])


@pytest.mark.parametrize('changed, named', [
    (dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.02))),
     'initial_lr of the optimizer: 0.01 (config: 0.02)'),
    (dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.5))),
     'weight_decay of the optimizer: 0.01 (config: 0.5)'),
    (dict(param_scheduler=dict(type='ExponentialLR', gamma=0.5, by_epoch=True)),
     'gamma of ExponentialLR: 0.9 (config: 0.5)'),
    (dict(param_scheduler=[dict(type='ExponentialLR', gamma=0.9, by_epoch=True)] * 2),
     'param_scheduler: 1 in the checkpoint, 2 in the config'),
    # mmengine lets a schedule end with the training.
    (dict(length=5), 'end of ExponentialLR: 1 (config: 5)'),
    (dict(), None),
])
def test_settings_that_a_checkpoint_overrides_are_named(changed, named, tmp_path, monkeypatch):
    small_runner(tmp_path, length=1).train()
    runner = small_runner(tmp_path, **dict(length=1, resume=True) | changed)
    warnings: list[str] = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    runner.train()
    warnings = [line for line in warnings if 'the config' in line]
    assert len(warnings) == (named is not None) and (not named or named in warnings[0])


@pytest.mark.parametrize('optimizer', [
    dict(type='AdamW', lr=0.01), dict(type='SGD', lr=0.01)], ids=['with state', 'without'])
def test_another_model_is_refused(optimizer, tmp_path):
    settings = dict(optim_wrapper=dict(optimizer=optimizer))
    small_runner(tmp_path, length=1, width=8, **settings).train()
    with pytest.raises(CheckpointError, match=(
            r'epoch_1.pth is of another model: net.0.weight has 8 x 4 values there and 9 x 4 here.*'
            'load_from=')):
        small_runner(tmp_path, length=2, width=9, resume=True, **settings).train()


def test_other_groups_of_parameters_are_refused(tmp_path):
    wrapper = dict(optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.1))
    small_runner(tmp_path, length=1, optim_wrapper=wrapper).train()
    with pytest.raises(CheckpointError, match='epoch_1.pth.*parameter groups.*load_from='):
        small_runner(tmp_path, length=2, resume=True, optim_wrapper=dict(
            wrapper, paramwise_cfg=dict(bias_decay_mult=0.))).train()


def test_the_state_of_other_parameters_is_refused():
    # As many groups of as many parameters, in another order; a fused step reads past their ends.
    first, second = (torch.nn.Linear(4, 1) for _ in range(2))
    optimizer = torch.optim.AdamW([first.weight, first.bias])
    first(torch.ones(4)).backward()
    optimizer.step()
    saved = optimizer.state_dict()
    for order in ([second.weight, second.bias], [second.bias, second.weight]):
        optimizer = torch.optim.AdamW(order)
        optimizer.load_state_dict(saved)
        if order[0] is second.weight:
            check_optimizer('file', OptimWrapper(optimizer))
        else:
            with pytest.raises(CheckpointError, match='file holds 1 x 4 values of exp_avg for a'):
                check_optimizer('file', OptimWrapperDict(one=OptimWrapper(optimizer)))


def test_without_averages_a_run_goes_on_with_the_weights_that_were_trained(tmp_path):
    runner = small_runner(tmp_path, length=1, ema=True)
    runner.train()
    trained = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    averaged = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert not torch.equal(averaged['net.0.weight'], trained['net.0.weight'])

    resumed = small_runner(tmp_path, length=1, resume=True)
    resumed.train()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, trained[name]), name
