# CIFAR-10, enlarged to the size that ImageNet models know. The official batches are downloaded to
# data_root where they are missing; folders {train,test}/{class} with images are read as well.
data_root = 'data/cifar10/'
num_classes = 10
data_preprocessor = dict(
    num_classes=num_classes,
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    to_rgb=True)  # images are BGR, here as in mmpretrain's inferencer

image_size = 224
train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='Resize', scale=image_size),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=image_size), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='xvit_mm.CIFAR10', data_root=data_root, split='train', channel_order='bgr',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='xvit_mm.CIFAR10', data_root=data_root, split='test', channel_order='bgr',
        test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
