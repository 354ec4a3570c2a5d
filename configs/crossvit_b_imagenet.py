# CrossViT-base on ImageNet-1K. Expected: 82.2 top-1 (paper).
#   python tools/train.py configs/crossvit_b_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='base'), head=dict(in_channels=(384, 768)))
