# CrossViT-9 on ImageNet-1K. Expected: 73.9 top-1 (paper).
#   python tools/train.py configs/crossvit_9_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='9'), head=dict(in_channels=(128, 256)))
