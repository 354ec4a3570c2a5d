# The old name of mobilenetv3_s_cifar10.
_base_ = '../small/mobilenetv3_s_cifar10.py'
