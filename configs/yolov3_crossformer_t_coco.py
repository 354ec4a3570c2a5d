# YOLOv3 + CrossFormer-T on COCO at 320 x 320. Expected: no published result. The length and the
# augmentation are those that mmdet gives MobileNetV2; AdamW is ours.
#   python tools/train.py configs/yolov3_crossformer_t_coco.py --pretrained official
_base_ = [
    '_base_/models/yolov3.py', '_base_/datasets/coco_yolov3_320.py',
    '_base_/schedules/yolov3_adamw_300e.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.CrossFormer', arch='t', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[512, 256, 128]))
