# 100 epochs of Adam at batch 256 with L2 decay and a cosine without warm-up.
max_epochs = 100
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='Adam', lr=3e-4, weight_decay=1e-5))
param_scheduler = dict(type='CosineAnnealingLR', T_max=max_epochs)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=256)
