# The old name of crossvit_t_imagenet.
_base_ = '../crossvit_t_imagenet.py'
