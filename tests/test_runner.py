"""Checkpoints in our runner: read safely whatever the model, loaded as mmengine does or better."""
import argparse
import os

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from small_models import SMALL
from torch import nn
from torch.utils.data import DataLoader

from xvit_mm.checkpoints import CheckpointError
from xvit_mm.engine import Runner
from xvit_mm.models.backbones import CrossFormer


class Plain(BaseModel):
    """A model without a backbone of this package, as the baselines are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))

    def forward(self, inputs, mode='tensor'):
        out = self.net(inputs)
        return dict(loss=out.square().mean()) if mode == 'loss' else out


class Ours(Plain):

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CrossFormer(**SMALL['CrossFormer'])


class Inputs(torch.utils.data.Dataset):

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.ones(2) * index)


def build(folder, model=None, **settings) -> Runner:
    return Runner(
        model or Plain(), work_dir=str(folder), experiment_name=f'test_{os.urandom(4).hex()}',
        train_dataloader=DataLoader(Inputs(), batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        visualizer=dict(type='Visualizer'), log_level='WARNING', **settings)


class Malicious:

    def __reduce__(self):
        return os.mkdir, (os.environ['XVIT_MM_TEST_TARGET'],)


@pytest.mark.parametrize('model', [Plain, Ours])
@pytest.mark.parametrize('address', ['weights.pth', 'https://host/weights.pth'])
def test_code_in_a_file_is_never_run(model, address, tmp_path, monkeypatch):
    target, model = tmp_path / 'made', model()
    monkeypatch.setenv('XVIT_MM_TEST_TARGET', str(target))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    folder = tmp_path if '://' not in address else tmp_path / 'hub/checkpoints'
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=model.state_dict(), extra=Malicious()), folder / 'weights.pth')
    if folder == tmp_path:
        address = str(tmp_path / address)
    with pytest.raises(CheckpointError, match='cannot be read.*mkdir'):
        build(tmp_path, model).load_checkpoint(address)
    assert not target.exists()


@pytest.mark.parametrize('form', ['bare', 'state_dict', 'module.'])
def test_a_model_of_another_package_takes_its_tensors_by_name(form, tmp_path):
    weights = {n: torch.full_like(t, 3) for n, t in Plain().state_dict().items()}
    weights = {f'module.{n}': t for n, t in weights.items()} if form == 'module.' else weights
    torch.save(weights if form == 'bare' else {'state_dict': weights, 'args': argparse.Namespace()},
               tmp_path / 'weights.pth')
    runner = build(tmp_path)
    runner.load_checkpoint(str(tmp_path / 'weights.pth'), strict=True)
    assert all((t == 3).all() for t in runner.model.state_dict().values())


def test_what_does_not_fit_is_refused_only_if_strict(tmp_path):
    weights = Plain().state_dict()
    weights['net.9.weight'] = weights.pop('net.0.weight')
    torch.save(weights, tmp_path / 'weights.pth')
    runner, path = build(tmp_path), str(tmp_path / 'weights.pth')
    runner.load_checkpoint(path)
    assert torch.equal(runner.model.net[0].bias.cpu(), weights['net.0.bias'])
    with pytest.raises(RuntimeError, match='net.9.weight'):
        runner.load_checkpoint(path, strict=True)


@pytest.mark.parametrize('model', [Plain, Ours])
def test_names_are_revised_as_asked(model, tmp_path):
    source = model()
    torch.save({f'student.{n}': t for n, t in source.state_dict().items()}, tmp_path / 'w.pth')
    runner = build(tmp_path, model())
    runner.load_checkpoint(
        str(tmp_path / 'w.pth'), strict=True, revise_keys=[(r'^student\.', '')])
    assert torch.equal(runner.model.net[0].weight.cpu(), source.net[0].weight)


def test_modules_learn_which_of_their_versions_saved_them(tmp_path, monkeypatch):
    seen = []
    load = nn.BatchNorm1d._load_from_state_dict
    monkeypatch.setattr(
        nn.BatchNorm1d, '_load_from_state_dict',
        lambda self, state, prefix, metadata, *args: (
            seen.append(metadata.get('version')), load(self, state, prefix, metadata, *args))[1])
    torch.save(dict(state_dict=Plain().state_dict()), tmp_path / 'weights.pth')
    build(tmp_path).load_checkpoint(str(tmp_path / 'weights.pth'))
    assert seen == [2]


class Doubled(Hook):

    def after_load_checkpoint(self, runner, checkpoint):
        checkpoint['state_dict'] = {n: 2 * t for n, t in checkpoint['state_dict'].items()}


@pytest.mark.parametrize('model', [Plain, Ours])
def test_hooks_may_change_the_weights(model, tmp_path):
    source = model()
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    runner = build(tmp_path, model(), custom_hooks=[Doubled()])
    runner.load_checkpoint(str(tmp_path / 'weights.pth'))
    assert torch.equal(runner.model.net[0].weight.cpu(), 2 * source.net[0].weight)


def test_averaged_weights_begin_as_those_that_were_loaded(tmp_path):
    source = Ours()
    # Under the names of a backbone alone, which only this runner understands.
    torch.save(source.backbone.state_dict(), tmp_path / 'weights.pth')
    hook = EMAHook()
    runner = build(tmp_path, Ours(), custom_hooks=[hook])
    runner.call_hook('before_run')
    runner.load_checkpoint(str(tmp_path / 'weights.pth'))
    hook.before_test_epoch(runner)  # swaps them in
    for name, tensor in runner.model.backbone.state_dict().items():
        assert torch.equal(tensor.cpu(), source.backbone.state_dict()[name]), name


def test_training_goes_on_where_it_was(tmp_path):
    first = build(tmp_path)
    first.train()
    second = build(tmp_path, resume=True)
    second.train()
    assert second.epoch == 1 and second.iter == 2
    assert all(torch.equal(a, b) for a, b in zip(
        first.model.state_dict().values(), second.model.state_dict().values()))
    steps = [runner.optim_wrapper.optimizer.state_dict()['state'][0]['step']
             for runner in (first, second)]
    assert steps[0] == steps[1] == 2
