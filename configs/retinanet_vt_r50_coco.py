# RetinaNet + VT-ResNet-50 on COCO, 1x. Expected: no published result. No recipe is published;
# this is mmdet's for a ResNet. The weights are torchvision's ResNet-50.
#   python tools/train.py configs/retinanet_vt_r50_coco.py --pretrained resnet50.pth
_base_ = [
    '_base_/models/retinanet.py', '_base_/datasets/coco_detection.py',
    '_base_/schedules/sgd_1x.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[256, 512, 1024, 1024]))
optim_wrapper = dict(optimizer=dict(lr=0.01))
