# VT-ResNet-101 on ImageNet-1K, default recipe. Expected: no published result with this recipe.
#   python tools/train.py configs/vt_r101_imagenet.py
_base_ = './vt_r18_imagenet.py'

model = dict(backbone=dict(arch='r101'))
