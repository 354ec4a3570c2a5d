# CrossViT-tiny on ImageNet-1K. Expected: 73.4 top-1 (paper).
#   python tools/train.py configs/crossvit_t_imagenet.py
_base_ = './crossvit_s_imagenet.py'

model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=(96, 192)))
