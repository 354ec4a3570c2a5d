# LIP, Look Into Person: 19 parts of people and the background, at 473 x 473.
_base_ = './segmentation.py'

data_root = 'data/lip/'
num_classes = 20
image_size = (473, 473)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.75, 1.25), keep_ratio=False),
    dict(type='RandomCrop', crop_size=image_size),
    # Not mirrored: left and right are different classes.
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=False),
    # After Resize: the labels keep their size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=12,
    dataset=dict(
        type='LIPDataset',
        data_root=data_root,
        data_prefix=dict(
            img_path='train_images', seg_map_path='train_segmentations'),
        pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        type='LIPDataset',
        data_root=data_root,
        data_prefix=dict(img_path='val_images', seg_map_path='val_segmentations'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
