# 12 epochs at batch 16 for plain vision transformers: AdamW at the rate of adamw_1x.py, with weight
# decay 0.1 on weight matrices only and rates that fall by 0.7 per layer towards the image, as in ViTDet
# (2203.16527), whose own rate of 1e-4 is for batch 64.
_base_ = './adamw_1x.py'

optim_wrapper = dict(
    constructor='xvit_mm.OptimWrapperConstructor',
    optimizer=dict(weight_decay=0.1),
    paramwise_cfg=dict(layer_decay_rate=0.7, decay_weights_only=True))
