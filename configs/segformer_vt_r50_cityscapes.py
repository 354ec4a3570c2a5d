# All-MLP decoder (SegFormer) + VT-ResNet-50 on Cityscapes, crops of 1024. Expected: no published
# result. The recipe is SegFormer's. The weights are torchvision's ResNet-50.
#   python tools/train.py configs/segformer_vt_r50_cityscapes.py --pretrained resnet50.pth
_base_ = [
    '_base_/models/segformer.py', '_base_/datasets/cityscapes_1024.py',
    '_base_/schedules/segformer_160k.py', '_base_/segmentation_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.VTResNet', depth=50, norm_cfg=dict(type='SyncBN')),
    decode_head=dict(in_channels=[256, 512, 1024, 1024], num_classes={{_base_.num_classes}}),
    test_cfg=dict(mode='slide', crop_size=(1024, 1024), stride=(768, 768)))
auto_scale_lr = dict(base_batch_size=8)
