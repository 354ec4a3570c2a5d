# Semantic FPN + ResNet-18 on CamVid, from scratch, on a CPU: what vtfpn_r18_camvid.py compares
# with.
#   python tools/train.py configs/small/fpn_r18_camvid.py --data-root FOLDER
_base_ = [
    '../_base_/models/semantic_fpn.py', '../_base_/datasets/camvid.py',
    '../_base_/schedules/adamw_small_segmentation.py', '../_base_/segmentation_runtime.py'
]
model = dict(
    data_preprocessor=dict(seg_pad_val={{_base_.ignore_index}}),
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN')),
    neck=dict(in_channels=[64, 128, 256, 512]),
    decode_head=dict(
        num_classes={{_base_.num_classes}}, ignore_index={{_base_.ignore_index}}))
