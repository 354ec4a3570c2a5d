# Mask R-CNN + XFormer on COCO, 1x. Expected: no published result. No recipe is published; this is
# CrossFormer's. There are no weights to start from.
#   python tools/train.py configs/mask_rcnn_xformer_coco.py
_base_ = [
    '_base_/models/mask_rcnn.py', '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer'),
    neck=dict(in_channels=[64, 96, 128, 160]))
