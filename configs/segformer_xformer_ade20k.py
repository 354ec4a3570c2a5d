# All-MLP decoder (SegFormer) + XFormer on ADE20K. Expected: no published result. The recipe is
# SegFormer's. There are no weights to start from.
#   python tools/train.py configs/segformer_xformer_ade20k.py
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/segformer_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer'),
    decode_head=dict(in_channels=[64, 96, 128, 160], num_classes={{_base_.num_classes}}))
