# Semantic FPN with VT-FPN + ResNet-50 on Cityscapes. Expected: no published result. The recipe is
# that of CrossFormer's Semantic FPN, at batch 8.
#   python tools/train.py configs/vtfpn_r50_cityscapes.py --pretrained torchvision://resnet50
_base_ = [
    '_base_/models/vtfpn.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
auto_scale_lr = dict(base_batch_size=8)
