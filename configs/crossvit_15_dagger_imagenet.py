# CrossViT-15-dagger on ImageNet-1K. Expected: 82.3 top-1 (paper).
#   python tools/train.py configs/crossvit_15_dagger_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='15_dagger'))
