# VT-ResNet-50 on ImageNet-1K, default recipe. Expected: no published result with this recipe.
#   python tools/train.py configs/vt_r50_imagenet.py
_base_ = './vt_r18_imagenet.py'

model = dict(backbone=dict(arch='r50'))
