# Semantic FPN with VT-FPN + ResNet-50 on COCO-stuff. Paper: 41.00 mIoU on 91 stuff classes; here
# are all 171 classes, so the figures are not comparable.
#   python tools/train.py configs/vt_paper/vtfpn_r50_cocostuff.py \
#       --pretrained torchvision://resnet50
_base_ = [
    '../_base_/models/vtfpn.py', '../_base_/datasets/cocostuff.py',
    '../_base_/schedules/sgd_cocostuff.py', '../_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
