# VT-ResNet-18 on ImageNet-1K, advanced recipe. Paper: 76.8 top-1 with distillation from
# FBNetV3-G, which is left out here, so expect less.
#   python tools/train.py configs/vt_r18_advanced_imagenet.py
# From the paper: stochastic depth with a survival of 0.9, dropout 0.2, label smoothing,
# AutoAugment, SyncBN, averaged weights (0.99985). Inferred: that the rate of drop path rises
# linearly over the blocks of ResNet and VT to 1 - 0.9, and the amount of label smoothing.
_base_ = [
    '_base_/models/classifier.py', '_base_/datasets/imagenet_autoaugment.py',
    '_base_/schedules/imagenet_rmsprop_400e.py', '_base_/classification_runtime.py'
]
model = dict(
    backbone=dict(
        type='xvit_mm.VTResNet', arch='r18', out_type='tokens', drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN')),
    head=dict(
        type='xvit_mm.VTClsHead',
        num_classes=1000,
        dropout=0.2,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
default_hooks = dict(ema=dict(type='EMAHook', momentum=1.5e-4, priority='ABOVE_NORMAL'))
