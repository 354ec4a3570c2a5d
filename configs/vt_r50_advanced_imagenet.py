# VT-ResNet-50 on ImageNet-1K, advanced recipe. Paper: 80.6 top-1 with distillation from
# FBNetV3-G, which is left out here, so expect less.
#   python tools/train.py configs/vt_r50_advanced_imagenet.py
_base_ = './vt_r18_advanced_imagenet.py'

model = dict(backbone=dict(arch='r50'))
