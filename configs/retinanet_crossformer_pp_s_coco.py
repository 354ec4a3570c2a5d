# RetinaNet + CrossFormer++-S on COCO, 1x. Expected: 45.1 box AP (paper).
#   python tools/train.py configs/retinanet_crossformer_pp_s_coco.py --pretrained official
_base_ = './retinanet_crossformer_s_coco.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(
    backbone=dict(arch='pp_s', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)),
    neck=dict(in_channels=[64, 128, 256, 512]))
