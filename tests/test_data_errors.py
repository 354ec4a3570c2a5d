"""Damaged data during a training run: the file is named, in one line, also by a worker."""
import json
import logging
import shutil
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from small_training import Losses, Noisy, small_runner
from torch.utils.data import DataLoader

from xvit_mm.datasets.shapes import make_shapes_dataset
from xvit_mm.engine import Runner
from xvit_mm.engine.data_errors import DataError
from xvit_mm.engine.hooks import DivergedError, FiniteLossHook
from xvit_mm.utils.config import ConfigError, load_config


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('shapes')
    make_shapes_dataset(root, num_train=2, num_val=1, seed=0)
    return root


@pytest.fixture
def root(shapes, tmp_path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / 'data'))


def loader(root: Path, workers: int = 0, name: str = 'train_dataloader') -> DataLoader:
    settings = load_config('retinanet_crossformer_demo.py', data_root=root)[name]
    settings.update(batch_size=2, num_workers=workers, persistent_workers=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return Runner.build_dataloader(settings, seed=0)


def change(file: Path, **entries) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def drop(file: Path, entry: str) -> None:
    content = json.loads(file.read_text())
    del content[entry]
    file.write_text(json.dumps(content))


ANNOTATIONS = {
    'no JSON': lambda file: file.write_text('no JSON'),
    'a part of it': lambda file: file.write_text(file.read_text()[:1000]),
    'empty': lambda file: file.write_text(''),
    'bytes that are not text': lambda file: file.write_bytes(b'\xff\xfe\x00'),
    'a list': lambda file: file.write_text('[]'),
    'no images': lambda file: drop(file, 'images'),
    'no annotations': lambda file: drop(file, 'annotations'),
    'no categories': lambda file: drop(file, 'categories'),
    'annotations that are null': lambda file: change(file, annotations=None),
    'an empty list of images': lambda file: change(file, images=[]),
}


@pytest.mark.parametrize('kind', ANNOTATIONS)
def test_annotations_that_cannot_be_used_are_named(kind, root):
    file = root / 'annotations/instances_train2017.json'
    ANNOTATIONS[kind](file)
    with pytest.raises(ConfigError, match=f'CocoDataset: .*{file}.*check_dataset') as caught:
        loader(root)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['an empty list of images', 'categories of other classes'])
def test_data_of_which_no_image_is_left_say_so(kind, root):
    file = root / 'annotations/instances_train2017.json'
    if 'categories' in kind:
        change(file, categories=[dict(id=i, name=f'other {i}') for i in range(1, 6)])
    else:
        ANNOTATIONS[kind](file)
    with pytest.raises(ConfigError, match=f'no image is left of .*{file}.*classes in the config'):
        loader(root)


IMAGES = {
    'is empty': lambda path: path.write_bytes(b''),
    'cannot be read as an image': lambda path: path.write_bytes(path.read_bytes()[:200]),
    'does not exist': lambda path: path.unlink(),
    '1 x 2500 pixels, does not pass the pipeline': lambda path: cv2.imwrite(
        str(path), np.zeros((2500, 1, 3), np.uint8)),
}


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('reason', IMAGES)
def test_images_that_cannot_be_read_are_named(reason, workers, root):
    path = next((root / 'train2017').iterdir())
    IMAGES[reason](path)
    with pytest.raises(DataError) as caught:
        list(loader(root, workers))
    assert str(caught.value).startswith(str(path)) and reason in str(caught.value)
    assert '\n' not in str(caught.value)


def test_validation_names_them_too(root):
    path = next((root / 'val2017').iterdir())
    path.write_bytes(b'')
    with pytest.raises(DataError, match=f'{path} is empty'):
        list(loader(root, name='val_dataloader'))


def test_a_defect_of_a_transform_keeps_its_traceback(root):
    batches = loader(root)
    batches.dataset.pipeline = lambda results: results['no such key']
    with pytest.raises(KeyError, match='no such key'):
        list(batches)


# Losses that are not finite.


class Diverging(Noisy):
    """The loss is not finite in some iterations."""

    def __init__(self, bad, value=float('nan')):
        super().__init__()
        self.bad, self.value, self.done = bad, value, 0

    def forward(self, inputs, mode='tensor', **others):
        self.done += mode == 'loss'
        out = super().forward(inputs, mode)
        return dict(loss_a=out['loss'], loss_b=out['loss'] * (
            self.value if self.done in self.bad else 1)) if mode == 'loss' else out


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr('mmengine.runner.Runner._log_env', lambda *args: None)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number_breaks_the_weights_and_stops_the_training(
    value, tmp_path, monkeypatch
):
    monkeypatch.setattr('small_training.Noisy', lambda width: Diverging({5}, value))
    losses = Losses()
    runner = small_runner(tmp_path, losses, FiniteLossHook(patience=3))
    with pytest.raises(DivergedError, match=rf'{value} \(loss_b\) at iteration 5.*3 iterations'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))


def test_single_infinite_losses_are_borne():
    hook, runner, bad = FiniteLossHook(patience=3), logging_runner(), torch.tensor(float('inf'))
    for loss in (bad, bad, torch.ones(()), bad, bad, torch.ones(())):
        hook.after_train_iter(runner, 0, None, dict(loss=loss))
    hook.after_train_iter(runner, 0, None, {})


def logging_runner():
    return type('Runner', (), dict(iter=9, logger=logging.getLogger('test')))


def test_the_images_are_named():
    hook, samples = FiniteLossHook(patience=1), [
        BaseDataElement(metainfo=dict(img_path=f'{name}.jpg')) for name in 'ab']
    with pytest.raises(DivergedError, match='iteration 10, with the images a.jpg, b.jpg,'):
        hook.after_train_iter(logging_runner(), 0, dict(data_samples=samples),
                              dict(loss=torch.tensor(float('nan'))))
    with pytest.raises(ValueError, match='patience is 0'):
        FiniteLossHook(patience=0)


def test_cifar10_that_is_nowhere_and_cannot_be_downloaded(tmp_path, monkeypatch) -> None:
    pytest.importorskip('mmpretrain')
    from xvit_mm.datasets.cifar10 import CIFAR10

    def no_network(*_: object, **__: object) -> None:
        raise URLError('no network')

    monkeypatch.setattr('mmpretrain.datasets.cifar.download_and_extract_archive', no_network)
    with pytest.raises(FileNotFoundError, match=f'{tmp_path} holds neither .*: .*no network'):
        CIFAR10(data_root=str(tmp_path), split='train')
