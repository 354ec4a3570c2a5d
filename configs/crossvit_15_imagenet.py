# CrossViT-15 on ImageNet-1K. Expected: 81.5 top-1 (paper).
#   python tools/train.py configs/crossvit_15_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='15'))
