# The old name of retinanet_crossvit_9_dagger_bccd.
_base_ = '../small/retinanet_crossvit_9_dagger_bccd.py'
