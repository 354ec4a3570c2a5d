# CrossViT-18 on ImageNet-1K. Expected: 82.5 top-1 (paper).
#   python tools/train.py configs/crossvit_18_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='18'), head=dict(in_channels=(224, 448)))
