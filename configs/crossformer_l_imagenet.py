# CrossFormer-L on ImageNet-1K. Expected: 84.0 top-1 (paper).
#   python tools/train.py configs/crossformer_l_imagenet.py
_base_ = './crossformer_s_imagenet.py'

model = dict(backbone=dict(arch='l'), head=dict(in_channels=1024))
