# MobileViT's recipe at batch 1024: 300 epochs of AdamW from 2e-4 to
# 2e-3 in 3000 iterations and down to 2e-4 again, with weight decay on every parameter.
_base_ = './imagenet_adamw_300e.py'

optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3000),
    dict(type='CosineAnnealingLR', eta_min=2e-4, by_epoch=True, convert_to_iter_based=True),
]
