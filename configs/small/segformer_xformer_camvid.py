# All-MLP decoder + XFormer on CamVid, from scratch, on a CPU. The recipe is ours. Expected: no
# published result; docs/xformer.md has ours.
#   python tools/train.py configs/small/segformer_xformer_camvid.py --data-root FOLDER
_base_ = [
    '../_base_/models/segformer.py', '../_base_/datasets/camvid.py',
    '../_base_/schedules/adamw_small_segmentation.py', '../_base_/segmentation_runtime.py'
]
model = dict(
    data_preprocessor=dict(seg_pad_val={{_base_.ignore_index}}),
    backbone=dict(type='xvit_mm.XFormer'),
    decode_head=dict(
        in_channels=[64, 96, 128, 160],
        num_classes={{_base_.num_classes}},
        ignore_index={{_base_.ignore_index}}))
