# Semantic FPN + ResNet-101 on LIP. Expected: 47.35 mIoU (paper).
#   python tools/train.py configs/vt_paper/fpn_r101_lip.py --pretrained torchvision://resnet101
_base_ = './fpn_r50_lip.py'

model = dict(backbone=dict(depth=101))
