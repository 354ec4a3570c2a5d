# CrossFormer++-B on ImageNet-1K. Expected: 84.2 top-1 (paper).
#   python tools/train.py configs/crossformer_pp_b_imagenet.py
_base_ = './crossformer_s_imagenet.py'

model = dict(backbone=dict(arch='pp_b'))
