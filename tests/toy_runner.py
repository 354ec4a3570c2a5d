"""A line fit in mmengine's runner, for the tests of the hooks."""
import os

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset


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


@pytest.fixture
def mmengine_resumes(monkeypatch):
    """Lets mmengine's runner resume: 0.10.7 cannot read its checkpoints with torch 2.6."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


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
