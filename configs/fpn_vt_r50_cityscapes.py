# Semantic FPN + VT-ResNet-50 on Cityscapes. Expected: no published result. The recipe is that of
# CrossFormer's Semantic FPN, at batch 8. Train the classifier first, or start from torchvision's
# ResNet-50 (`--pretrained official`).
#   python tools/train.py configs/vt_r50_imagenet.py
#   python tools/train.py configs/fpn_vt_r50_cityscapes.py \
#       --pretrained work_dirs/vt_r50_imagenet/epoch_90.pth
_base_ = [
    '_base_/models/semantic_fpn.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', arch='r50', norm_cfg=dict(type='SyncBN')),
    neck=dict(in_channels=[256, 512, 1024, 1024]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
auto_scale_lr = dict(base_batch_size=8)
