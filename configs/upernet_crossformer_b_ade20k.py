# UPerNet + CrossFormer-B on ADE20K. Expected: 49.7 mIoU, 50.6 with --tta (paper).
#   python tools/train.py configs/upernet_crossformer_b_ade20k.py --pretrained official
_base_ = './upernet_crossformer_s_ade20k.py'

model = dict(backbone=dict(arch='b'))
