"""Small models of each task with random weights, and images for them."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_models import SMALL

from xvit_mm.apis import build_model
from xvit_mm.utils.config import load_config

CLASSES = ('ellipse', 'rectangle', 'triangle', 'star', 'ring')


def config(task: str) -> Config:
    """A small model of a task; its data need not be there."""
    backbone = dict(type='xvit_mm.CrossFormer', **SMALL['CrossFormer'])
    if task == 'classification':
        backbone = dict(type='xvit_mm.VTResNet', **SMALL['VTResNet'])
        model = dict(
            type='ImageClassifier', backbone=backbone,
            head=dict(type='LinearClsHead', num_classes=5, in_channels=64),
            neck=dict(type='GlobalAveragePooling'))
        pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64),
                    dict(type='PackInputs')]
        return Config(dict(
            default_scope='mmpretrain', model=model,
            data_preprocessor=dict(mean=[120] * 3, std=[60] * 3, to_rgb=True),
            test_dataloader=dict(dataset=dict(
                type='CustomDataset', metainfo=dict(classes=CLASSES), pipeline=pipeline))))
    if task == 'segmentation':
        model = dict(
            type='EncoderDecoder', backbone=backbone,
            decode_head=dict(type='FCNHead', in_channels=256, channels=8, num_classes=5,
                             norm_cfg=dict(type='BN')),
            data_preprocessor=dict(
                type='SegDataPreProcessor', mean=[120] * 3, std=[60] * 3, bgr_to_rgb=True),
            test_cfg=dict(mode='whole'))
        pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64)),
                    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
        return Config(dict(
            default_scope='mmseg', model=model,
            test_dataloader=dict(dataset=dict(
                type='BaseSegDataset', metainfo=dict(classes=CLASSES), pipeline=pipeline))))
    options = {'model.neck.out_channels': 16, 'model.backbone': dict(backbone, _delete_=True),
               'model.neck.in_channels': [32, 64, 128, 256]}
    if task == 'detection':
        cfg = load_config('retinanet_crossformer_demo')
        options |= {'model.bbox_head.in_channels': 16, 'model.bbox_head.feat_channels': 16}
    else:
        cfg = load_config('mask_rcnn_crossformer_s_coco')
        options |= {
            'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16,
            'model.roi_head.bbox_roi_extractor.out_channels': 16,
            'model.roi_head.mask_roi_extractor.out_channels': 16,
            'model.roi_head.bbox_head.in_channels': 16,
            'model.roi_head.bbox_head.fc_out_channels': 16,
            'model.roi_head.mask_head.in_channels': 16,
            'model.roi_head.mask_head.conv_out_channels': 8,
            'model.test_cfg.rcnn.score_thr': 0., 'model.test_cfg.rcnn.max_per_img': 5,
            'test_dataloader.dataset.pipeline.1.scale': (160, 128)}
    cfg.merge_from_dict(options)
    return cfg


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A function from a config to a checkpoint for it, with random weights."""
    made: dict[str, Path] = {}

    def weights_of(cfg: Config) -> Path:
        key = str(cfg.model)
        if key not in made:
            torch.manual_seed(0)
            made[key] = tmp_path_factory.mktemp('weights') / 'weights.pth'
            torch.save(dict(state_dict=build_model(cfg).state_dict()), made[key])
        return made[key]

    return weights_of


@pytest.fixture
def images(tmp_path) -> Path:
    """A folder with images of three sizes, the first two alike; one in a subfolder."""
    folder = tmp_path / 'images'
    for i, (name, shape) in enumerate({
            'a.png': (60, 90), 'b.jpg': (60, 90), 'sub/c.png': (90, 60)}.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (8, 12, 3), np.uint8)
        cv2.imwrite(str(folder / name), cv2.resize(noise, shape[::-1]))
    return folder
