# Semantic FPN with VT-FPN + ResNet-101 on COCO-stuff. Paper: 41.50 mIoU on 91 stuff classes; here
# are all 171 classes, so the figures are not comparable.
#   python tools/train.py configs/vt_paper/vtfpn_r101_cocostuff.py \
#       --pretrained torchvision://resnet101
_base_ = './vtfpn_r50_cocostuff.py'

model = dict(backbone=dict(depth=101))
