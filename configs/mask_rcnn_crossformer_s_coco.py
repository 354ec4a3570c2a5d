# Mask R-CNN + CrossFormer-S on COCO, 1x. Expected: 45.4 box AP, 41.4 mask AP (paper:
# CrossFormer++, 2303.06908).
#   python tools/train.py configs/mask_rcnn_crossformer_s_coco.py --pretrained official
_base_ = [
    '_base_/models/mask_rcnn.py', '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    neck=dict(in_channels=[96, 192, 384, 768]))
