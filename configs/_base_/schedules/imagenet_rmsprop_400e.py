# 400 epochs of RMSprop at batch 2048, from 0.01 to 0.16 in 5 epochs, then times 0.9875 per epoch: the
# advanced recipe of the VT paper. Inferred, as the paper does not say: alpha, momentum and eps of
# RMSprop (EfficientNet's), the weight decay (that of the paper's default recipe), and that the
# factor 0.9875, its "decay", is that of the learning rate alone.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='RMSprop', lr=0.16, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=4e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.0625, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='ExponentialLR', gamma=0.9875, by_epoch=True, begin=5),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=400, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=2048)
