# Cascade Mask R-CNN + CrossFormer-S on COCO, 3x. Expected: 52.2 box AP, 45.2 mask AP (paper). The
# box heads, which the paper does not describe but whose size it prints, and the 3x recipe are
# Swin's.
#   python tools/train.py configs/cascade_mask_rcnn_crossformer_s_3x_coco.py --pretrained official
_base_ = [
    '_base_/models/cascade_mask_rcnn.py', '_base_/datasets/coco_instance_multiscale.py',
    '_base_/schedules/adamw_3x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    neck=dict(in_channels=[96, 192, 384, 768]))
