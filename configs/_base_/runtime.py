# What every training shares: checkpoints, logs, curves, pictures, seeds.
runner_type = 'xvit_mm.Runner'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Two are kept, so that a kill while one is being written leaves the other.
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'))
custom_hooks = [
    dict(type='xvit_mm.ProgressBarHook'),
    dict(type='xvit_mm.CurvesHook'),
    dict(type='xvit_mm.PicturesHook'),
]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
