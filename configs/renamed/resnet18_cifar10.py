# The old name of r18_cifar10.
_base_ = '../small/r18_cifar10.py'
