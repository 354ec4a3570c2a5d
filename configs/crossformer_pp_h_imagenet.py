# CrossFormer++-H on ImageNet-1K. Expected: 84.9 top-1 (paper).
#   python tools/train.py configs/crossformer_pp_h_imagenet.py
_base_ = './crossformer_s_imagenet.py'

model = dict(backbone=dict(arch='pp_h'), head=dict(in_channels=1024))
