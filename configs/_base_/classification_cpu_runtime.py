# Runtime of mmpretrain for small training runs of convolutional models, on a CPU above all.
_base_ = './classification_runtime.py'

default_hooks = dict(channels_last=dict(enabled=True))
