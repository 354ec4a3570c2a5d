# CrossViT-9-dagger on CIFAR-10: 224 x 224, label smoothing 0.1, cosine, 100 epochs, as is
# customary for transfer from ImageNet (`--pretrained`); the rest of the recipe is ours. Expected:
# no published result.
#   python tools/train.py configs/small/crossvit_9_dagger_cifar10.py --pretrained official
_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar10_100e.py', '../_base_/classification_runtime.py'
]
model = dict(
    # Images of 224 as they are for the large patches.
    backbone=dict(
        type='xvit_mm.CrossViT', arch='9_dagger', out_type='cls_token', image_branch='large'),
    head=dict(
        type='xvit_mm.CrossViTClsHead',
        num_classes=10,
        in_channels=(128, 256),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1)))
