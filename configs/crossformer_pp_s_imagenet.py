# CrossFormer++-S on ImageNet-1K. Expected: 83.2 top-1 (paper).
#   python tools/train.py configs/crossformer_pp_s_imagenet.py
_base_ = './crossformer_s_imagenet.py'

model = dict(backbone=dict(arch='pp_s'), head=dict(in_channels=512))
