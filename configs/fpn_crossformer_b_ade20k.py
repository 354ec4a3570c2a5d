# Semantic FPN + CrossFormer-B on ADE20K. Expected: 48.0 mIoU (paper).
#   python tools/train.py configs/fpn_crossformer_b_ade20k.py --pretrained official
_base_ = './fpn_crossformer_s_ade20k.py'

model = dict(backbone=dict(arch='b'))
