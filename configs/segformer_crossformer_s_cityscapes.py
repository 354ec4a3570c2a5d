# All-MLP decoder (SegFormer) + CrossFormer-S on Cityscapes, crops of 1024. Expected: no published
# result. The recipe is SegFormer's.
#   python tools/train.py configs/segformer_crossformer_s_cityscapes.py --pretrained official
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/cityscapes_1024.py',
    '_base_/schedules/segformer_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s'),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes={{_base_.num_classes}}),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
auto_scale_lr = dict(base_batch_size=8)
