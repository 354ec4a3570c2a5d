# Runtime of mmdet.
_base_ = './runtime.py'

default_scope = 'mmdet'
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
# For --show-dir of mmdet's own test.py.
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
