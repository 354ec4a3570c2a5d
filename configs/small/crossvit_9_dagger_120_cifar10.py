# CrossViT-9-dagger on CIFAR-10 at 120 x 120, from scratch, on a CPU: the counterpart of
# timm_crossvit_9_dagger_120_cifar10.py.
#   python tools/train.py configs/small/crossvit_9_dagger_120_cifar10.py
_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/cifar10_120.py',
    '../_base_/schedules/cifar10_100e.py', '../_base_/classification_runtime.py'
]
loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
model = dict(
    backbone=dict(
        type='xvit_mm.CrossViT', arch='9_dagger', out_type='cls_token', img_size=112,
        drop_path_rate=0.1),
    head=dict(
        type='xvit_mm.CrossViTClsHead', num_classes=10, in_channels=(128, 256), loss=loss))
