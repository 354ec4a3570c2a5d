# SGD at batch 96 with learning rate 0.01 and weight decay 5e-4 (VT paper). The paper does not give the
# length; 150 epochs (47,600 iterations) with poly decay are customary on LIP.
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0., by_epoch=False, begin=0, end=47600)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=47600, val_interval=4760)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=96)
