# CrossViT-9 on CIFAR-10, as crossvit_9_dagger_cifar10.py with plain patch embeddings.
#   python tools/train.py configs/small/crossvit_9_cifar10.py --pretrained official
_base_ = './crossvit_9_dagger_cifar10.py'

model = dict(backbone=dict(arch='9'))
