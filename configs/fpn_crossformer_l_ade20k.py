# Semantic FPN + CrossFormer-L on ADE20K. Expected: 49.1 mIoU (paper).
#   python tools/train.py configs/fpn_crossformer_l_ade20k.py --pretrained official
_base_ = './fpn_crossformer_s_ade20k.py'

# The only released dense model whose groups and intervals are larger than the others'.
model = dict(
    backbone=dict(arch='l', group_size=(14, 14, 7, 7), interval=(16, 8, 2, 1)),
    neck=dict(in_channels=[128, 256, 512, 1024]))
