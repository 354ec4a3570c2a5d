# ImageNet-1K at 408, the size of CrossViT's "384" models: small patches see 408, large ones 384. For
# fine-tuning models trained at 240, with the augmentation of that training as in DeiT. Evaluated as timm
# does: the short side to 408, then the centre. (CrossViT's repository gives no command for this size.)
_base_ = './imagenet_deit.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=408, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    {{_base_.rand_augment}},
    {{_base_.random_erasing}},
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge', scale=408, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=408),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
