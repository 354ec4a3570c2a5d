# MobileNetV2 of mmdet with the recipe of yolov3_xformer_bccd.py, for comparison.
#   python tools/train.py configs/small/yolov3_mobilenetv2_bccd.py --data-root FOLDER
_base_ = './yolov3_xformer_bccd.py'

model = dict(
    backbone=dict(_delete_=True, type='MobileNetV2', out_indices=(2, 4, 6)),
    neck=dict(in_channels=[320, 96, 32]))
