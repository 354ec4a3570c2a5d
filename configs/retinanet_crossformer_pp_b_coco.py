# RetinaNet + CrossFormer++-B on COCO, 1x. Expected: 46.6 box AP (paper).
#   python tools/train.py configs/retinanet_crossformer_pp_b_coco.py --pretrained official
_base_ = './retinanet_crossformer_s_coco.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(backbone=dict(arch='pp_b', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)))
