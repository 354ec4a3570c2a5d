# UPerNet + CrossFormer-L on ADE20K. Expected: 50.4 mIoU, 51.4 with --tta (paper).
#   python tools/train.py configs/upernet_crossformer_l_ade20k.py --pretrained official
_base_ = './upernet_crossformer_s_ade20k.py'

model = dict(
    backbone=dict(arch='l'),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))
