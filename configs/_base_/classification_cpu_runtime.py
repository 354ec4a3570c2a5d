# Runtime of mmpretrain for small trainings of convolutional models, on a CPU above all.
_base_ = './classification_runtime.py'

custom_hooks = [
    dict(type='xvit_mm.ProgressBarHook'),
    dict(type='xvit_mm.CurvesHook'),
    dict(type='xvit_mm.PicturesHook'),
    dict(type='xvit_mm.ChannelsLastHook'),
]
