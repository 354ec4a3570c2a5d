# Semantic FPN with VT-FPN + CrossViT-S on ADE20K. Expected: no published result. The recipe is
# that of CrossFormer's Semantic FPN.
#   python tools/train.py configs/vtfpn_crossvit_s_ade20k.py --pretrained official
_base_ = [
    '_base_/models/vtfpn.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small'),
    neck=dict(in_channels=[192, 192, 384, 384]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
