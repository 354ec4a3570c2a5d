# RetinaNet + CrossViT-S on COCO, 1x. Expected: no published result. Plain vision transformers
# need smaller rates near the image: weight decay and layer decay are ViTDet's, the schedule 1x.
#   python tools/train.py configs/retinanet_crossvit_s_coco.py --pretrained official
_base_ = [
    '_base_/models/retinanet.py', '_base_/datasets/coco_detection.py',
    '_base_/schedules/adamw_1x_layer_decay.py', '_base_/detection_runtime.py'
]
model = dict(
    # RetinaNet has no use for the map of stride 4.
    backbone=dict(type='xvit_mm.CrossViT', arch='small', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[192, 384, 384], start_level=0))
