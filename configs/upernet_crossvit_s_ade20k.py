# UPerNet + CrossViT-S on ADE20K. Expected: no published result. The recipe is that of
# CrossFormer's UPerNet, with smaller rates near the image.
#   python tools/train.py configs/upernet_crossvit_s_ade20k.py --pretrained official
_base_ = [
    '_base_/models/upernet.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k_layer_decay.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small'),
    decode_head=dict(in_channels=[192, 192, 384, 384], num_classes={{_base_.num_classes}}),
    auxiliary_head=dict(in_channels=384, num_classes={{_base_.num_classes}}))
