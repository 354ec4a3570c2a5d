# The quick start: RetinaNet + a small CrossFormer, from scratch on generated shapes, on a CPU.
#   python tools/make_demo_data.py && python tools/train.py configs/retinanet_crossformer_demo.py
_base_ = [
    '_base_/models/retinanet.py', '_base_/datasets/shapes_detection.py',
    '_base_/schedules/adamw_small.py', '_base_/detection_runtime.py'
]
norm_cfg = dict(type='GN', num_groups=16)
model = dict(
    backbone=dict(
        type='xvit_mm.CrossFormer',
        arch=dict(
            embed_dims=48, depths=(1, 1, 3, 1), num_heads=(2, 4, 8, 16),
            # They divide maps of images padded to multiples of 32 into few shapes of groups.
            group_size=(8, 8, 14, 7)),
        drop_path_rate=0.),
    # From scratch, a detector needs norms outside the backbone too. No object is larger than the
    # anchors of stride 32.
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=96, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=5, in_channels=96, feat_channels=96, stacked_convs=2, norm_cfg=norm_cfg,
        anchor_generator=dict(strides=[8, 16, 32]), reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=2.0)))

max_epochs = 4
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
# After so short a training, most lower scores are wrong.
default_hooks = dict(pictures=dict(score_thr=0.5))
