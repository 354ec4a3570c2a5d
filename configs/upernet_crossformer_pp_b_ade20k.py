# UPerNet + CrossFormer++-B on ADE20K. Expected: 50.7 mIoU, 51.0 with --tta (paper).
#   python tools/train.py configs/upernet_crossformer_pp_b_ade20k.py --pretrained official
_base_ = './upernet_crossformer_s_ade20k.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(backbone=dict(arch='pp_b', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)))
