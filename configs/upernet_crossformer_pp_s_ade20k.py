# UPerNet + CrossFormer++-S on ADE20K. Expected: 49.4 mIoU, 50.8 with --tta (paper).
#   python tools/train.py configs/upernet_crossformer_pp_s_ade20k.py --pretrained official
_base_ = './upernet_crossformer_s_ade20k.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(
    backbone=dict(arch='pp_s', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
