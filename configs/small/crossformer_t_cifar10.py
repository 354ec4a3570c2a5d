# CrossFormer-T on CIFAR-10, as crossvit_9_dagger_cifar10.py. Expected: no published result.
#   python tools/train.py configs/small/crossformer_t_cifar10.py --pretrained official
_base_ = './crossvit_9_dagger_cifar10.py'

model = dict(
    backbone=dict(_delete_=True, type='xvit_mm.CrossFormer', arch='t', out_indices=(3,)),
    head=dict(type='xvit_mm.CrossFormerClsHead', in_channels=512))
