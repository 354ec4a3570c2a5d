# CrossFormer-T on ImageNet-1K. Expected: 81.5 top-1 (paper).
#   python tools/train.py configs/crossformer_t_imagenet.py
_base_ = './crossformer_s_imagenet.py'

model = dict(backbone=dict(arch='t'), head=dict(in_channels=512))
