"""Configs that mmdet, mmseg and mmpretrain ship, with each of our backbones put into them.

Every config is tried with one backbone, and with all four where XVIT_MM_FULL_ZOO=1 is set.
"""
import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from shipped_configs import shipped, small
from small_models import SMALL

from xvit_mm.swap import swap_backbone
from xvit_mm.swap.writing import literal
from xvit_mm.utils.config import ConfigError, load_config

FULL = os.environ.get('XVIT_MM_FULL_ZOO') == '1'
# What the trials have less of than the shipped configs: width and repetition, which no rule reads.
SMALLER = dict(
    fc_out_channels=64, num=32, num_points=64, stacked_convs=1, num_layers=2, num_blocks=1,
    num_queries=100)
NARROW_HEADS = (
    'UPerHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead', 'DAHead', 'EncHead')

SWAPPED = (
    'mmdet/retinanet/retinanet_r50_fpn_1x_coco',
    'mmdet/faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
    'mmdet/faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco',
    'mmdet/mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco',
    'mmdet/cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
    'mmdet/pafpn/faster-rcnn_r50_pafpn_1x_coco',
    'mmdet/fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
    'mmdet/atss/atss_r50_fpn_1x_coco',
    'mmdet/dyhead/atss_r50_fpn_dyhead_1x_coco',
    'mmdet/gfl/gfl_r50_fpn_1x_coco',
    'mmdet/tood/tood_r50_fpn_1x_coco',
    'mmdet/fpg/retinanet_r50_fpg_crop640_50e_coco',
    'mmdet/nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco',
    'mmdet/yolo/yolov3_d53_8xb8-ms-608-273e_coco',
    'mmdet/yolof/yolof_r50-c5_8xb8-1x_coco',
    'mmdet/yolox/yolox_s_8xb8-300e_coco',
    'mmdet/rtmdet/rtmdet_s_8xb32-300e_coco',
    'mmdet/centernet/centernet_r18_8xb16-crop512-140e_coco',
    'mmdet/detr/detr_r50_8xb2-150e_coco',
    'mmdet/deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'mmdet/dino/dino-4scale_r50_8xb2-12e_coco',
    'mmdet/mask2former/mask2former_r50_8xb2-lsj-50e_coco',
    'mmdet/panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco',
    'mmdet/crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman',
    'mmdet/ddod/ddod_r50_fpn_1x_coco',
    'mmdet/queryinst/queryinst_r50_fpn_1x_coco',
    'mmdet/nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco',
    'mmseg/sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024',
    'mmseg/upernet/upernet_r50_4xb4-160k_ade20k-512x512',
    'mmseg/vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512',
    'mmseg/segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
    'mmseg/deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg/deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024',
    'mmseg/pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024',
    'mmseg/fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg/ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512',
    'mmseg/ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg/danet/danet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg/encnet/encnet_r50-d8_4xb2-40k_cityscapes-512x1024',
    'mmseg/fastfcn/fastfcn_r50-d32_jpu_enc_4xb2-80k_cityscapes-512x1024',
    'mmseg/knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512',
    'mmseg/mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
    'mmpretrain/resnet/resnet50_8xb32_in1k',
    'mmpretrain/swin_transformer/swin-tiny_16xb64_in1k',
    'mmpretrain/convnext/convnext-tiny_32xb128_in1k',
    'mmpretrain/csra/resnet101-csra_1xb16_voc07-448px',
    'mmrotate/r3det/r3det-oc_r50_fpn_1x_dota',
    'mmrotate/oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota',
)
REFUSED = {
    'mmdet/faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco': 'shared_head.* last stage',
    'mmdet/cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco': 'HourglassNet.*whole network',
    'mmdet/detectors/detectors_htc-r50_1x_coco': 'more than one backbone.*rfp_backbone',
    'mmdet/tridentnet/tridentnet_r50-caffe_1x_coco': 'TridentResNet',
    'mmdet/ld/ld_r18-gflv1-r101_fpn_1x_coco': 'teacher_config',
    'mmdet/lad/lad_r50-paa-r101_fpn_2xb8_coco_1x': 'teacher_backbone',
    'mmdet/soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco':
        'no model.backbone',
    # mmdet's SSDHead cannot predict with its own backbone either.
    'mmdet/ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco':
        'a prediction of SingleStageDetector fails.*loss_cls',
    'mmdet/carafe/faster-rcnn_r50_fpn-carafe_1x_coco':
        "FasterRCNN needs an operator of mmcv that does not exist for device 'cpu'.*carafe",
    'mmseg/unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024': 'UNet.*whole network',
    'mmseg/bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024': 'BiSeNetV2.*whole network',
    'mmseg/mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024': 'strides 2, 4, 8',
    'mmseg/san/san-vit-b16_coco-stuff164k-640x640': 'no model.backbone',
    'mmpretrain/mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k': 'MoCo.*only ImageClassifier',
    'mmpretrain/vgg/vgg16_8xb16_voc': 'MultiLabelClsHead: unknown',
    'mmpretrain/lenet/lenet5_mnist': 'not of RGB',
    'mmpretrain/clip/vit-large-p14_headless': 'no head',
}
NAMES = list(SMALL)
CASES = [(config, name) for i, config in enumerate(SWAPPED) for j, name in enumerate(NAMES)
         if FULL or i % len(NAMES) == j]


def smaller(node: Any) -> Any:
    """A model with fewer and narrower layers of the same kind."""
    if isinstance(node, (list, tuple)):
        return type(node)(smaller(child) for child in node)
    if not isinstance(node, dict):
        return node
    # Heads inside a head are tied to its width, and the backbone is what is being replaced.
    node = {key: child if key in ('backbone', 'kernel_generate_head') else smaller(child)
            for key, child in node.items()}
    if node.get('type') in NARROW_HEADS:
        node['channels'] = 64
    return node | {key: value for key, value in SMALLER.items() if key in node}


@pytest.mark.parametrize(('config', 'name'), CASES)
def test_shipped_config_trains_and_predicts_with_our_backbone(
    config: str, name: str, tmp_path: Path
) -> None:
    pytest.importorskip(config.partition('/')[0])
    user = tmp_path / 'user.py'
    model = smaller(load_config(shipped(config)).model.to_dict())
    user.write_text(f'_base_ = {str(shipped(config))!r}\nmodel = '
                    f'{literal(dict(_delete_=True, **model))}\n')
    swap = swap_backbone(user, small(name), tmp_path / 'new.py')
    assert len(swap.trial.predictions) == 2
    assert not swap.trial.without_gradient
    written = Config.fromfile(tmp_path / 'new.py')
    assert written.model.backbone.type == swap.new == f'xvit_mm.{name}'
    assert 'frozen_stages' not in written.model.backbone


@pytest.mark.parametrize('config', REFUSED)
def test_what_cannot_be_done_is_refused_and_nothing_written(config: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSED[config]):
        swap_backbone(shipped(config), small('CrossFormer'), tmp_path / 'new.py')
    assert not list(tmp_path.iterdir())
