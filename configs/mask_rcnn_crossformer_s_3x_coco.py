# Mask R-CNN + CrossFormer-S on COCO, 3x. Expected: 48.7 box AP, 43.9 mask AP (paper). The 3x
# recipe is that of the nearest published relative, Swin.
#   python tools/train.py configs/mask_rcnn_crossformer_s_3x_coco.py --pretrained official
_base_ = [
    '_base_/models/mask_rcnn.py', '_base_/datasets/coco_instance_multiscale.py',
    '_base_/schedules/adamw_3x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    neck=dict(in_channels=[96, 192, 384, 768]))
