# Mask R-CNN + CrossViT-S on COCO, 1x. Expected: no published result. Weight decay and layer decay
# are ViTDet's, the schedule 1x.
#   python tools/train.py configs/mask_rcnn_crossvit_s_coco.py --pretrained official
_base_ = [
    '_base_/models/mask_rcnn.py', '_base_/datasets/coco_instance.py',
    '_base_/schedules/adamw_1x_layer_decay.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small'),
    neck=dict(in_channels=[192, 192, 384, 384]))
