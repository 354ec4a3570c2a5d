# UPerNet + CrossFormer-S on ADE20K. Expected: 47.6 mIoU, 48.4 with --tta (paper: CrossFormer++,
# 2303.06908).
#   python tools/train.py configs/upernet_crossformer_s_ade20k.py --pretrained official
_base_ = [
    '_base_/models/upernet.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes={{_base_.num_classes}}),
    auxiliary_head=dict(in_channels=384, num_classes={{_base_.num_classes}}))
