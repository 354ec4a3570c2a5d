# 30 epochs at a higher resolution from weights trained at 224, as in DeiT: batch 512.
_base_ = './imagenet_adamw_300e.py'

optim_wrapper = dict(optimizer=dict(lr=5e-6, weight_decay=1e-8), clip_grad=None)
param_scheduler = []
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
