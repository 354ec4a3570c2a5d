# Semantic FPN + CrossFormer-S on ADE20K. Expected: 46.4 mIoU (paper: CrossFormer++, 2303.06908).
#   python tools/train.py configs/fpn_crossformer_s_ade20k.py --pretrained official
_base_ = [
    '_base_/models/semantic_fpn.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    neck=dict(in_channels=[96, 192, 384, 768]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
