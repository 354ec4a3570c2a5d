# All-MLP decoder (SegFormer) + XFormer on ADE20K. Expected: no published result. The recipe is
# SegFormer's. No weights are released: train the classifier first.
#   python tools/train.py configs/xformer_imagenet.py
#   python tools/train.py configs/segformer_xformer_ade20k.py \
#       --pretrained work_dirs/xformer_imagenet/epoch_300.pth
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/segformer_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer'),
    decode_head=dict(in_channels=[64, 96, 128, 160], num_classes={{_base_.num_classes}}))
