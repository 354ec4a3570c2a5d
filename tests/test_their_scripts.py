"""train.py, test.py and the inferencers of mmdet, mmseg and mmpretrain, from the installed packages.

Each with a config of this repository, and with one of theirs whose backbone is swapped by hand.
"""
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from toy_data import make_toy_data

import xvit_mm

pytestmark = pytest.mark.slow
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Schedules that warm up for longer than one epoch are refused.
ONE_STEP = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'param_scheduler=None')


@dataclass(frozen=True)
class Package:
    """A package with scripts.

    Attributes:
        ours: a config of this repository.
        theirs: a config of the package, and the lines that give it our backbone.
        options: further settings, which fit training to a CPU and a few images.
    """

    ours: str
    theirs: str
    swap: str
    options: tuple[str, ...]


PACKAGES = {
    'mmdet': Package(
        'retinanet_crossformer_s_coco', 'retinanet/retinanet_r50_fpn_1x_coco.py',
        "model = dict(\n"
        "    backbone=dict(_delete_=True, type='xvit_mm.CrossFormer', arch='t'),\n"
        "    neck=dict(in_channels=[64, 128, 256, 512]))\n",
        # What is not trained is sure of nothing, and without detections there is no AP.
        (*ONE_STEP, 'model.test_cfg.score_thr=0.')),
    'mmseg': Package(
        'fpn_crossformer_s_ade20k', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py',
        "model = dict(\n"
        "    pretrained=None, backbone=dict(_delete_=True, type='xvit_mm.XFormer', arch='s'),\n"
        "    neck=dict(in_channels={channels}))\n",
        # Both ask for SyncBN, which needs a GPU.
        ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'model.decode_head.norm_cfg.type=BN',
         'default_hooks.checkpoint.interval=2', 'param_scheduler=None')),
    'mmpretrain': Package(
        'crossformer_s_imagenet', 'resnet/resnet50_8xb32_in1k.py',
        "model = dict(\n"
        "    backbone=dict(_delete_=True, type='xvit_mm.CrossFormer', arch='t', out_indices=(3,)),\n"
        "    head=dict(in_channels=512))\n", ONE_STEP),
}


def folder_of(package: str) -> Path:
    """Where the package keeps its scripts and configs."""
    return Path(importlib.import_module(package).__file__).parent / '.mim'


def run(script: Path, *arguments: str | Path) -> str:
    root = Path(xvit_mm.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(root), 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def data_options(cfg: Config, root: Path) -> Iterator[str]:
    """Options that have a config read its data from another folder, a few images at a time."""
    for loader in LOADERS:
        yield f'{loader}.dataset.data_root={root}'
        # mmseg validates images as large as they are, so one at a time.
        yield f'{loader}.batch_size={2 if loader == LOADERS[0] else 1}'
        yield f'{loader}.num_workers=0'
        yield f'{loader}.persistent_workers=False'
    for name in ('val_evaluator', 'test_evaluator'):
        if 'ann_file' in cfg[name]:
            file = Path(cfg[name]['ann_file']).relative_to(cfg.data_root)
            yield f'{name}.ann_file={root / file}'


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, ...]]:
    """Config, checkpoint, options and an image, after a run of the package's own train.py."""
    finished: dict[tuple[str, str], Any] = {}

    def train(package: str, whose: str) -> Any:
        if (package, whose) not in finished:
            finished[package, whose] = _train(package, whose, tmp_path_factory.mktemp(package))
        return finished[package, whose]

    return train


def _train(package: str, whose: str, folder: Path) -> tuple[Path, Path, list[str], Path]:
    settings = PACKAGES[package]
    config = Path(xvit_mm.cfg(settings.ours))
    if whose == 'theirs':
        base = folder_of(package) / 'configs' / settings.theirs
        channels = xvit_mm.models.XFormer('s').out_channels
        config = folder / 'mine.py'
        config.write_text(
            f"_base_ = ['{base}']\n" + settings.swap.replace('{channels}', str(list(channels))))
    cfg = Config.fromfile(config)
    data = folder / 'data'
    data.mkdir()
    moved = Config.fromfile(config)
    moved.merge_from_dict(dict(option.split('=', 1) for option in data_options(cfg, data)
                               if 'data_root' in option or 'ann_file' in option))
    make_toy_data(moved, data)
    options = [*data_options(cfg, data), *settings.options]
    work_dir = folder / 'run'
    run(folder_of(package) / 'tools' / 'train.py', config, '--work-dir', work_dir,
        '--cfg-options', *options)
    checkpoint = next(work_dir.glob('*_*.pth'))
    image = next(path for path in sorted(data.rglob('*')) if path.suffix.lower() in
                 ('.jpg', '.jpeg', '.png') and 'ann' not in str(path.parent))
    return config, checkpoint, options, image


@pytest.mark.parametrize('whose', ['ours', 'theirs'])
@pytest.mark.parametrize('package', PACKAGES)
def test_their_scripts_train_and_evaluate(package: str, whose: str, trained: Callable) -> None:
    config, checkpoint, options, _ = trained(package, whose)
    tools, work_dir = folder_of(package) / 'tools', checkpoint.parent
    # mmdet and mmseg draw each fiftieth sample unless told otherwise.
    draw_all = ['--interval', '1', '--cfg-options'] if package == 'mmpretrain' else [
        '--cfg-options', 'default_hooks.visualization.interval=1']
    output = run(tools / 'test.py', config, checkpoint, '--work-dir', work_dir / 'test',
                 '--show-dir', work_dir / 'drawn', *draw_all, *options)
    metric = {'mmdet': 'bbox_mAP', 'mmseg': 'mIoU', 'mmpretrain': 'accuracy/top1'}[package]
    assert metric in output
    assert [path for path in work_dir.rglob('*.[jp][pn]g') if 'drawn' in path.parts]


@pytest.mark.parametrize('package', PACKAGES)
def test_their_scripts_resume(package: str, trained: Callable) -> None:
    config, checkpoint, options, _ = trained(package, 'ours')
    output = run(folder_of(package) / 'tools' / 'train.py', config, '--work-dir',
                 checkpoint.parent, '--resume', '--cfg-options', *options)
    assert 'resumed epoch' in output


@pytest.mark.parametrize('whose', ['ours', 'theirs'])
@pytest.mark.parametrize('package', PACKAGES)
def test_their_inferencers_take_config_and_checkpoint(
    package: str, whose: str, trained: Callable,
) -> None:
    config, checkpoint, _, image = trained(package, whose)
    if package == 'mmdet':
        from mmdet.apis import DetInferencer
        inferencer = DetInferencer(str(config), str(checkpoint), device='cpu')
        boxes = inferencer(str(image))['predictions'][0]['bboxes']
        assert all(len(box) == 4 for box in boxes)
    elif package == 'mmseg':
        from mmseg.apis import MMSegInferencer
        inferencer = MMSegInferencer(str(config), str(checkpoint), device='cpu')
        assert inferencer(str(image), return_vis=False)['predictions'].ndim == 2
    else:
        from mmpretrain import ImageClassificationInferencer
        inferencer = ImageClassificationInferencer(str(config), str(checkpoint), device='cpu')
        assert len(inferencer(str(image))[0]['pred_scores']) == 1000
