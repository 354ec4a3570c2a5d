# Semantic FPN + CrossViT-S on Cityscapes. Expected: no published result. The recipe is that of
# CrossFormer's Semantic FPN, at batch 8.
#   python tools/train.py configs/fpn_crossvit_s_cityscapes.py --pretrained official
_base_ = [
    '_base_/models/semantic_fpn.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small'),
    neck=dict(in_channels=[192, 192, 384, 384]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
auto_scale_lr = dict(base_batch_size=8)
