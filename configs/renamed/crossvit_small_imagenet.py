# The old name of crossvit_s_imagenet.
_base_ = '../crossvit_s_imagenet.py'
