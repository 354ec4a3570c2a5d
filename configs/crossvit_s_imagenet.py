# CrossViT-small on ImageNet-1K. Expected: 81.0 top-1 (paper).
#   python tools/train.py configs/crossvit_s_imagenet.py
_base_ = [
    '_base_/models/classifier_mixup.py', '_base_/datasets/imagenet_240.py',
    '_base_/schedules/imagenet_crossvit_300e.py', '_base_/classification_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small', out_type='cls_token'),
    head=dict(
        type='xvit_mm.CrossViTClsHead',
        num_classes=1000,
        in_channels=(192, 384),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
# Each image several times in a batch, differently augmented.
train_dataloader = dict(sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True))
