# Runtime of mmpretrain.
_base_ = './runtime.py'

default_scope = 'mmpretrain'
# For --show-dir of mmpretrain's own test.py.
default_hooks = dict(visualization=dict(type='VisualizationHook'))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
