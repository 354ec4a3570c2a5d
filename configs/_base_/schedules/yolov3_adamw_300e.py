# The length of yolov3_sgd_300e.py with AdamW for vision transformers: ours.
_base_ = './yolov3_sgd_300e.py'

optim_wrapper = dict(
    constructor='xvit_mm.OptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(decay_weights_only=True))
