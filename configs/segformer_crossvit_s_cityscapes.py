# All-MLP decoder (SegFormer) + CrossViT-S on Cityscapes, crops of 1024. Expected: no published
# result. The recipe is SegFormer's, with smaller rates near the image in place of its ten times
# higher one in the head.
#   python tools/train.py configs/segformer_crossvit_s_cityscapes.py --pretrained official
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/cityscapes_1024.py',
    '_base_/schedules/adamw_160k_layer_decay.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossViT', arch='small'),
    decode_head=dict(in_channels=[192, 192, 384, 384], num_classes={{_base_.num_classes}}),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
auto_scale_lr = dict(base_batch_size=8)
