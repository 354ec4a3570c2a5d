# CrossViT-18-dagger on ImageNet-1K. Expected: 82.8 top-1 (paper).
#   python tools/train.py configs/crossvit_18_dagger_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='18_dagger'), head=dict(in_channels=(224, 448)))
