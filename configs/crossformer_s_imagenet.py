# CrossFormer-S on ImageNet-1K. Expected: 82.5 top-1 (paper).
#   python tools/train.py configs/crossformer_s_imagenet.py
_base_ = [
    '_base_/models/classifier_mixup.py', '_base_/datasets/imagenet_deit.py',
    '_base_/schedules/imagenet_adamw_300e.py', '_base_/classification_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='s', out_indices=(3,)),
    head=dict(
        type='xvit_mm.CrossFormerClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
