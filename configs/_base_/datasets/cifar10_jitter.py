# CIFAR-10 at 224 with crops of 0.6 to 1 of the image, colour jitter and rotation, and ImageNet's mean and
# standard deviation.
_base_ = './cifar10.py'

data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
image_size = 224
train_pipeline = [
    dict(type='Resize', scale=image_size),
    dict(type='RandomResizedCrop', scale=image_size, crop_ratio_range=(0.6, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.2, contrast=0.2, saturation=0.2),
    # An angle of up to 20 degrees, uniform.
    dict(
        type='Rotate', magnitude_range=(0, 20), magnitude_level=10, magnitude_std='inf', prob=1.,
        pad_val=0),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=image_size), dict(type='PackInputs')]
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
