# CIFAR-10, enlarged to 120 x 120: the smallest size near the originals' half that both branches of a
# CrossViT divide (120 = 10 x 12, 112 = 7 x 16).
_base_ = './cifar10.py'

image_size = 120
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Resize', scale=image_size),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=image_size), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
