# All-MLP decoder (SegFormer) + CrossFormer-S on ADE20K. Expected: no published result. The recipe
# is SegFormer's.
#   python tools/train.py configs/segformer_crossformer_s_ade20k.py --pretrained official
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/segformer_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes={{_base_.num_classes}}))
