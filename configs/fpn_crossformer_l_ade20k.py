# Semantic FPN + CrossFormer-L on ADE20K. Expected: 49.1 mIoU (paper).
#   python tools/train.py configs/fpn_crossformer_l_ade20k.py --pretrained crossformer-l.pth
_base_ = './fpn_crossformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='l'),
    neck=dict(in_channels=[128, 256, 512, 1024]))
