# What every training shares: checkpoints, logs, curves, pictures, seeds.
runner_type = 'xvit_mm.Runner'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Two are kept, for the case that the disk damages one.
    checkpoint=dict(type='xvit_mm.CheckpointHook', interval=1, max_keep_ckpts=2, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    finite_loss=dict(type='xvit_mm.FiniteLossHook'),
    progress_bar=dict(type='xvit_mm.ProgressBarHook'),
    curves=dict(type='xvit_mm.CurvesHook'),
    pictures=dict(type='xvit_mm.PicturesHook'),
    # Faster for models of convolutions on a CPU: default_hooks.channels_last.enabled=True
    channels_last=dict(type='xvit_mm.ChannelsLastHook', enabled=False))
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
