# VT-ResNet-18 on CIFAR-10, from scratch, images enlarged to 64 x 64. The recipe is ours.
# Expected: no published result; docs/vt.md has ours.
#   python tools/train.py configs/small/vt_r18_cifar10.py
_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/cifar10_64.py',
    '../_base_/schedules/cifar10_100e.py', '../_base_/classification_cpu_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', arch='r18', out_type='tokens'),
    head=dict(
        type='xvit_mm.VTClsHead',
        num_classes=10,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
