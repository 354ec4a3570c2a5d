# RetinaNet + a small CrossFormer, from scratch on BCCD (blood cells, 3 classes, 205 images), on a
# CPU. Also the example of a data set of your own in COCO's format: classes, files, head.
#   python tools/train.py configs/small/retinanet_crossformer_mini_bccd.py --data-root FOLDER
_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/bccd_detection.py',
    '../_base_/schedules/adamw_small.py', '../_base_/detection_runtime.py'
]
norm_cfg = dict(type='GN', num_groups=16)
model = dict(
    backbone=dict(
        type='xvit_mm.CrossFormer',
        arch=dict(embed_dims=64, depths=(1, 1, 4, 2), num_heads=(2, 4, 8, 16)),
        drop_path_rate=0.),
    # From scratch, a detector needs norms outside the backbone too; GroupNorm suits small batches.
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=128, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=3, in_channels=128, feat_channels=128, stacked_convs=2, norm_cfg=norm_cfg))
