# VT-ResNet-18 on ImageNet-1K, default recipe. Expected: 72.0 top-1 (paper).
#   python tools/train.py configs/vt_r18_imagenet.py
_base_ = [
    '_base_/models/classifier.py', '_base_/datasets/imagenet.py',
    '_base_/schedules/imagenet_sgd_90e.py', '_base_/classification_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', arch='r18', out_type='tokens'),
    head=dict(type='xvit_mm.VTClsHead', num_classes=1000))
