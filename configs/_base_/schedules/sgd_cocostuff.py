# Detectron2's 1x steps of semantic FPN at twice its batch and learning rate, as the VT paper says: 90k
# steps at batch 32. Where the steps lie is Detectron2's.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.04, momentum=0.9, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000], gamma=0.1, end=90000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=90000, val_interval=10000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
