# Semantic FPN + XFormer on Cityscapes. Expected: no published result. The recipe is that of
# CrossFormer's Semantic FPN, at batch 8. No weights are released: train the classifier first.
#   python tools/train.py configs/xformer_imagenet.py
#   python tools/train.py configs/fpn_xformer_cityscapes.py \
#       --pretrained work_dirs/xformer_imagenet/epoch_300.pth
_base_ = [
    '_base_/models/semantic_fpn.py', '_base_/datasets/cityscapes.py',
    '_base_/schedules/adamw_80k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer'),
    neck=dict(in_channels=[64, 96, 128, 160]),
    decode_head=dict(num_classes={{_base_.num_classes}}))
auto_scale_lr = dict(base_batch_size=8)
