# XFormer on ImageNet-1K. Expected: 78.5 top-1 (paper, which gives no recipe). Published: the
# result and the size of the model. Ours: the recipe, that of MobileViT with its five sizes of
# images.
#   python tools/train.py configs/xformer_imagenet.py
_base_ = [
    '_base_/models/classifier.py', '_base_/datasets/imagenet_256.py',
    '_base_/schedules/imagenet_mobilevit_300e.py', '_base_/classification_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer'),
    head=dict(
        type='xvit_mm.XFormerClsHead',
        num_classes=1000,
        in_channels=160,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
default_hooks = dict(
    ema=dict(type='EMAHook', momentum=5e-4, priority='ABOVE_NORMAL'),
    # Each batch at one of five sizes, the same on all devices.
    multi_scale=dict(type='xvit_mm.MultiScaleHook', sizes=(160, 192, 256, 288, 320)))
