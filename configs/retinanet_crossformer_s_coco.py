# RetinaNet + CrossFormer-S on COCO, 1x. Expected: 44.4 box AP (paper: CrossFormer++, 2303.06908),
# from ImageNet weights, batch 16.
#   python tools/train.py configs/retinanet_crossformer_s_coco.py --pretrained official
_base_ = [
    '_base_/models/retinanet.py', '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    neck=dict(in_channels=[96, 192, 384, 768]))
