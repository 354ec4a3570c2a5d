# Semantic FPN + CrossFormer-S on Cityscapes. Expected: no published result. The recipe is that of
# CrossFormer's Semantic FPN, at batch 8.
#   python tools/train.py configs/fpn_crossformer_s_cityscapes.py --pretrained official
_base_ = [
    '_base_/models/semantic_fpn.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    neck=dict(in_channels=[96, 192, 384, 768]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
auto_scale_lr = dict(base_batch_size=8)
