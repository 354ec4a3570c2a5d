# All-MLP decoder (SegFormer) + CrossViT-S on ADE20K. Expected: no published result. The recipe is
# SegFormer's, with smaller rates near the image in place of its ten times higher one in the head.
#   python tools/train.py configs/segformer_crossvit_s_ade20k.py --pretrained official
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/ade20k.py',
    '_base_/schedules/adamw_160k_layer_decay.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small'),
    decode_head=dict(in_channels=[192, 192, 384, 384], num_classes={{_base_.num_classes}}))
