# Mask R-CNN + CrossFormer++-S on COCO, 1x. Expected: 46.4 box AP, 42.1 mask AP (paper).
#   python tools/train.py configs/mask_rcnn_crossformer_pp_s_coco.py --pretrained official
_base_ = './mask_rcnn_crossformer_s_coco.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(
    backbone=dict(arch='pp_s', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)),
    neck=dict(in_channels=[64, 128, 256, 512]))
