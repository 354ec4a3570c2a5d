# Semantic FPN with VT-FPN + ResNet-101 on LIP. Expected: 47.58 mIoU (paper).
#   python tools/train.py configs/vt_paper/vtfpn_r101_lip.py --pretrained torchvision://resnet101
_base_ = './vtfpn_r50_lip.py'

model = dict(backbone=dict(depth=101))
