# YOLOv3 + XFormer on COCO, trained at 320 to 416 and tested at 416. Expected: no published
# result. No weights are released: train the classifier first.
#   python tools/train.py configs/xformer_imagenet.py
#   python tools/train.py configs/yolov3_xformer_416_coco.py \
#       --pretrained work_dirs/xformer_imagenet/epoch_300.pth
_base_ = [
    '_base_/models/yolov3.py', '_base_/datasets/coco_yolov3_416.py',
    '_base_/schedules/yolov3_sgd_300e.py', '_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[160, 128, 96]),
    bbox_head=dict(
        # Made by mmdet for images of 416 x 416.
        anchor_generator=dict(
            base_sizes=[[(116, 90), (156, 198), (373, 326)],
                        [(30, 61), (62, 45), (59, 119)],
                        [(10, 13), (16, 30), (33, 23)]])))
