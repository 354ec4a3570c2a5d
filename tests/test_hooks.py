"""Importing the hooks, and the sizes of training batches."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader
from toy_runner import ToyMetric, mmengine_resumes

from xvit_mm.engine.hooks import MultiScaleHook
from xvit_mm.utils.config import ConfigError

__all__ = ['mmengine_resumes']  # a fixture
REPOSITORY = Path(__file__).resolve().parents[1]


def test_importing_the_engine_imports_no_openmmlab_family():
    # What the package itself imports is pinned elsewhere; here it is what the hooks add.
    code = ('import sys, xvit_mm; before = set(sys.modules); import xvit_mm.engine; '
            'print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
    assert done.returncode == 0, done.stderr
    assert not {'mmdet', 'mmseg', 'mmpretrain', 'matplotlib'} & set(eval(done.stdout))


@pytest.mark.parametrize('installed, config', [
    ('mmseg', 'fpn_crossformer_s_ade20k'), ('mmpretrain', 'crossformer_s_imagenet')])
def test_the_tools_work_with_one_framework_and_name_another_that_is_missing(installed, config):
    code = f'''
import sys
for name in {{'mmdet', 'mmseg', 'mmpretrain', 'pycocotools', 'timm'}} - {{{installed!r}}}:
    sys.modules[name] = None  # importing it fails
import xvit_mm.apis.command_line, xvit_mm.apis.predict, xvit_mm.datasets.checking, xvit_mm.swap
from xvit_mm.apis import build_model
from xvit_mm.utils.config import load_config
print(type(build_model(load_config({config!r})).backbone).__name__)
build_model(load_config('retinanet_crossformer_s_coco'))
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
    assert done.stdout.split()[-1] == 'CrossFormer', done.stderr
    assert 'the config is one of mmdet, which is not installed here; pip install onedl-mmd' in (
        done.stderr.splitlines()[-1])


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


def test_a_resumed_training_goes_on_with_the_same_sizes(tmp_path, mmengine_resumes):
    whole = train_at_sizes(tmp_path / 'whole', epochs=3)
    first = train_at_sizes(tmp_path / 'parts', epochs=1)
    second = train_at_sizes(tmp_path / 'parts', epochs=3, resume=True)
    assert first + second == whole


@pytest.mark.parametrize('part', ['bbox_head', 'decode_head'])
def test_sizes_of_a_model_with_boxes_or_label_maps_are_left_alone(part):
    model = SizesModel()
    setattr(model, part, torch.nn.Identity())
    with pytest.raises(ConfigError, match=f'neither boxes nor label maps, .* has a {part}'):
        MultiScaleHook().before_train(type('R', (), dict(model=model)))


@pytest.mark.parametrize('settings, message', [
    (dict(sizes=()), r'sizes=\[\]'), (dict(sizes=(160, 0)), r'sizes=\[160, 0\]'),
    (dict(sizes=(160.5,)), 'give whole numbers'), (dict(interval=0), r'interval=\[0\]'),
])
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleHook(**settings)
