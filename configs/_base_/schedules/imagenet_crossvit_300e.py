# CrossViT's recipe: batch 4096, learning rate 4e-3, 30 epochs of warm-up, weight decay 0.1.
_base_ = './imagenet_adamw_300e.py'

optim_wrapper = dict(optimizer=dict(lr=4e-3, weight_decay=0.1), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=30, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=30),
]
auto_scale_lr = dict(base_batch_size=4096)
