# VT-ResNet-34 on ImageNet-1K, default recipe. Expected: 74.8 top-1 (paper).
#   python tools/train.py configs/vt_r34_imagenet.py
_base_ = './vt_r18_imagenet.py'

model = dict(backbone=dict(arch='r34'))
