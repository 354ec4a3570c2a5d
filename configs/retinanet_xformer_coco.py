# RetinaNet + XFormer on COCO, 1x. Expected: no published result. No recipe is published; this is
# CrossFormer's. No weights are released: train the classifier first.
#   python tools/train.py configs/xformer_imagenet.py
#   python tools/train.py configs/retinanet_xformer_coco.py \
#       --pretrained work_dirs/xformer_imagenet/epoch_300.pth
_base_ = [
    '_base_/models/retinanet.py', '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer'),
    neck=dict(in_channels=[64, 96, 128, 160]))
