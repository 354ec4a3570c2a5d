# RetinaNet + VT-ResNet-50 on COCO, 1x. Expected: no published result. No recipe is published;
# this is mmdet's for a ResNet: a frozen first stage and BatchNorm in eval mode belong to it. So VT
# needs ImageNet weights of its own, whose statistics its norms keep: train the classifier first.
#   python tools/train.py configs/vt_r50_imagenet.py
#   python tools/train.py configs/retinanet_vt_r50_coco.py \
#       --pretrained work_dirs/vt_r50_imagenet/epoch_90.pth
_base_ = [
    '_base_/models/retinanet.py', '_base_/datasets/coco_detection.py',
    '_base_/schedules/sgd_1x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', arch='r50', frozen_stages=1, norm_eval=True),
    neck=dict(in_channels=[256, 512, 1024, 1024]))
optim_wrapper = dict(optimizer=dict(lr=0.01))
