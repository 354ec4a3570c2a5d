# CrossFormer++-L on ImageNet-1K. Expected: 84.7 top-1 (paper).
#   python tools/train.py configs/crossformer_pp_l_imagenet.py
_base_ = './crossformer_s_imagenet.py'

model = dict(backbone=dict(arch='pp_l'), head=dict(in_channels=1024))
