# Mask R-CNN + CrossFormer++-B on COCO, 1x. Expected: 47.7 box AP, 43.2 mask AP (paper).
#   python tools/train.py configs/mask_rcnn_crossformer_pp_b_coco.py --pretrained official
_base_ = './mask_rcnn_crossformer_s_coco.py'

# Groups and intervals as in the released dense models; the arch's own are for images of 224.
model = dict(backbone=dict(arch='pp_b', group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1)))
