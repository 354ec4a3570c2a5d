# CrossViT-15-dagger-384 on ImageNet-1K: CrossViT-15-dagger fine-tuned at 408 x 408, which are 384
# for the large patches. Expected: 83.5 top-1 (paper). The recipe is DeiT's.
#   python tools/train.py configs/crossvit_15_dagger_384_imagenet.py \
#       --pretrained official://crossvit_15_dagger_224
_base_ = [
    '_base_/models/classifier_mixup.py', '_base_/datasets/imagenet_408.py',
    '_base_/schedules/imagenet_finetune_30e.py', '_base_/classification_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='15_dagger_384', out_type='cls_token'),
    head=dict(
        type='xvit_mm.CrossViTClsHead',
        num_classes=1000,
        in_channels=(192, 384),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
# Each image several times in a batch, differently augmented.
train_dataloader = dict(sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True))
