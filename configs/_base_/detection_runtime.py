# Runtime of mmdet.
_base_ = './runtime.py'

default_scope = 'mmdet'
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
