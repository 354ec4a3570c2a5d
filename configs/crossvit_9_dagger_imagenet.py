# CrossViT-9-dagger on ImageNet-1K. Expected: 77.1 top-1 (paper).
#   python tools/train.py configs/crossvit_9_dagger_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='9_dagger'), head=dict(in_channels=(128, 256)))
