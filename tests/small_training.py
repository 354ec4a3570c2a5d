"""A training run of a second whose every step draws random numbers of all kinds."""
import os
import random

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from torch import nn

from xvit_mm.engine import Runner

NUM_SAMPLES, BATCH_SIZE = 13, 2


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without the report on the environment and waiting for the disk, which take longest."""
    monkeypatch.setattr('mmengine.runner.Runner._log_env', lambda *args: None)
    monkeypatch.setattr('xvit_mm.utils.files._sync', lambda path: None)


class Noisy(BaseModel):
    """Dropout, and noise of numpy and python, as augmentations on whole batches have it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.3), nn.Linear(width, 1))

    def forward(self, inputs, mode='tensor'):
        out = self.net(inputs + np.random.rand() + random.random())
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


@DATASETS.register_module()
class Augmented(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        noise = [np.random.rand(), random.random(), torch.rand(()).item()]
        return dict(inputs=torch.tensor([float(index), *noise]))


class Progress(BaseMetric):
    """An accuracy that grows from one validation to the next, so that each gives a new best."""

    def process(self, data_batch, data_samples):
        self.results.append(np.random.rand())

    def compute_metrics(self, results):
        step = float(MessageHub.get_current_instance().get_info('iter', 0))
        return dict(acc=step, loss=-step)


class Losses(Hook):
    """Keeps the loss of each iteration, and may raise `error` once one is done."""

    def __init__(self, stop_after=None, error=KeyboardInterrupt):
        self.values, self.stop_after, self.error = {}, stop_after, error

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.values[runner.iter + 1] = outputs['loss'].item()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.stop_after:
            raise self.error


def small_runner(folder, *hooks, by_epoch=True, length=4, workers=0, persistent=True, sampler=None,
                 interval=None, checkpoint=None, width=8, seed=0, ema=False, **settings) -> Runner:
    """Seven iterations an epoch; by iteration, checkpoints and validations every third."""
    loader = dict(dataset=dict(type='Augmented'), batch_size=BATCH_SIZE, num_workers=workers,
                  persistent_workers=persistent and workers > 0,
                  collate_fn=dict(type='default_collate'))
    torch.manual_seed(0)
    sampler = sampler or ('DefaultSampler' if by_epoch else 'InfiniteSampler')
    interval = interval or (1 if by_epoch else 3)
    return Runner(
        Noisy(width), work_dir=str(folder), experiment_name=f'small_{os.urandom(4).hex()}',
        train_dataloader=dict(loader, sampler=dict(type=sampler, shuffle=True)),
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=by_epoch, val_interval=interval,
                       **{'max_epochs' if by_epoch else 'max_iters': length}),
        val_cfg={}, val_evaluator=[Progress()],
        default_hooks=dict(checkpoint={
            **dict(type='CheckpointHook', interval=interval, by_epoch=by_epoch, max_keep_ckpts=2,
                   save_best='acc'), **(checkpoint or {})}),
        custom_hooks=[*hooks, *([dict(type='EMAHook', momentum=0.1)] if ema else [])],
        visualizer=dict(type='Visualizer'), log_level='WARNING',
        log_processor=dict(by_epoch=by_epoch), randomness=dict(seed=seed), **dict(
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=dict(type='ExponentialLR', gamma=0.9, by_epoch=by_epoch)) | settings)
