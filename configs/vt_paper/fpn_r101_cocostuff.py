# Semantic FPN + ResNet-101 on COCO-stuff. Paper: 41.51 mIoU on 91 stuff classes; here are all 171
# classes, so the figures are not comparable.
#   python tools/train.py configs/vt_paper/fpn_r101_cocostuff.py \
#       --pretrained torchvision://resnet101
_base_ = './fpn_r50_cocostuff.py'

model = dict(backbone=dict(depth=101))
