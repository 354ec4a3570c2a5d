# Semantic FPN + CrossFormer++-S on ADE20K. Expected: 47.4 mIoU (paper).
#   python tools/train.py configs/fpn_crossformer_pp_s_ade20k.py --pretrained official
_base_ = './fpn_crossformer_s_ade20k.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(
    backbone=dict(arch='pp_s', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)),
    neck=dict(in_channels=[64, 128, 256, 512]))
