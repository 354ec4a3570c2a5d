# YOLOv3 + XFormer on BCCD (blood cells, 3 classes), from scratch, on a CPU. The recipe is ours.
# Expected: no published result; docs/xformer.md has ours.
#   python tools/train.py configs/small/yolov3_xformer_bccd.py --data-root FOLDER
_base_ = [
    '../_base_/models/yolov3.py', '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_small.py', '../_base_/detection_runtime.py'
]
model = dict(
    backbone=dict(type='xvit_mm.XFormer', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[160, 128, 96]),
    bbox_head=dict(num_classes=3))
