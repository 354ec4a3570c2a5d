# All-MLP decoder (SegFormer) + VT-ResNet-50 on Cityscapes, crops of 1024. Expected: no published
# result. The recipe is SegFormer's. Train the classifier first, or start from torchvision's
# ResNet-50 (`--pretrained official`).
#   python tools/train.py configs/vt_r50_imagenet.py
#   python tools/train.py configs/segformer_vt_r50_cityscapes.py \
#       --pretrained work_dirs/vt_r50_imagenet/epoch_90.pth
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/cityscapes_1024.py',
    '_base_/schedules/segformer_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', arch='r50', norm_cfg=dict(type='SyncBN')),
    decode_head=dict(in_channels=[256, 512, 1024, 1024], num_classes={{_base_.num_classes}}),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
auto_scale_lr = dict(base_batch_size=8)
