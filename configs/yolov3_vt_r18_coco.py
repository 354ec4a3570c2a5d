# YOLOv3 + VT-ResNet-18 on COCO at 320 x 320. Expected: no published result. The recipe is the
# one that mmdet gives MobileNetV2. Train the classifier first, or start from torchvision's
# ResNet-18 (`--pretrained official`).
#   python tools/train.py configs/vt_r18_imagenet.py
#   python tools/train.py configs/yolov3_vt_r18_coco.py \
#       --pretrained work_dirs/vt_r18_imagenet/epoch_90.pth
_base_ = [
    '_base_/models/yolov3.py', '_base_/datasets/coco_yolov3_320.py',
    '_base_/schedules/yolov3_sgd_300e.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(
        type='xvit_mm.VTResNet', arch='r18', norm_cfg=dict(type='SyncBN'),
        out_indices=(1, 2, 3)),
    neck=dict(in_channels=[512, 256, 128]))
