# VT-ResNet-34 on ImageNet-1K, advanced recipe. Paper: 79.9 top-1 with distillation from
# FBNetV3-G, which is left out here, so expect less.
#   python tools/train.py configs/vt_r34_advanced_imagenet.py
_base_ = './vt_r18_advanced_imagenet.py'

model = dict(backbone=dict(arch='r34'))
