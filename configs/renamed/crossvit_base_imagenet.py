# The old name of crossvit_b_imagenet.
_base_ = '../crossvit_b_imagenet.py'
