# The quick start: RetinaNet + a small CrossFormer, from scratch on generated shapes, on a CPU.
#   python tools/make_demo_data.py && python tools/train.py configs/retinanet_crossformer_demo.py
_base_ = './retinanet_crossformer_s_coco.py'

norm_cfg = dict(type='GN', num_groups=16)
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=48, depths=(1, 1, 3, 1), num_heads=(2, 4, 8, 16)),
        drop_path_rate=0.),
    # From scratch, a detector needs norms outside the backbone too.
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=96, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=5, in_channels=96, feat_channels=96, stacked_convs=2, norm_cfg=norm_cfg,
        loss_bbox=dict(loss_weight=2.0)))

data_root = 'data/demo/'
shapes = dict(
    data_root=data_root,
    metainfo=dict(
        classes=('ellipse', 'rectangle', 'triangle', 'star', 'ring'),
        palette=[(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167)]))
load, pack = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
boxes = dict(type='LoadAnnotations', with_bbox=True)
resize = dict(type='Resize', scale=(200, 160), keep_ratio=True)
flip = dict(type='RandomFlip', prob=[0.25, 0.25], direction=['horizontal', 'vertical'])
train_pipeline = [load, boxes, resize, flip, pack]
test_pipeline = [load, resize, boxes, pack]
train_dataloader = dict(batch_size=4, dataset=dict(**shapes, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**shapes, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

max_epochs = 12
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.05), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
auto_scale_lr = dict(base_batch_size=4)
