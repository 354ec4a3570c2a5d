# Semantic FPN + ResNet-50 on LIP. For comparison. Expected: 47.04 mIoU (paper).
#   python tools/train.py configs/vt_paper/fpn_r50_lip.py --pretrained torchvision://resnet50
_base_ = [
    '../_base_/models/semantic_fpn.py', '../_base_/datasets/lip.py',
    '../_base_/schedules/sgd_lip.py', '../_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
