# MobileNetV3-small of mmpretrain with the recipe of xformer_cifar10.py, for comparison.
#   python tools/train.py configs/small/mobilenetv3_s_cifar10.py
_base_ = './xformer_cifar10.py'

model = dict(
    backbone=dict(_delete_=True, type='MobileNetV3', arch='small'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=576))
