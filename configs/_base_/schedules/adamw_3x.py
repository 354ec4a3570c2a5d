# 36 epochs of AdamW at batch 16: the 3x recipe of vision transformers (Swin's repository).
_base_ = './adamw_1x.py'

optim_wrapper = dict(
    constructor='xvit_mm.OptimWrapperConstructor',
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(decay_weights_only=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, milestones=[27, 33], gamma=0.1, end=36),
]
train_cfg = dict(max_epochs=36)
