# ResNet-18 of mmpretrain with the recipe of vt_r18_cifar10.py, for comparison.
#   python tools/train.py configs/small/r18_cifar10.py
_base_ = './vt_r18_cifar10.py'

model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=18, zero_init_residual=False),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=512))
