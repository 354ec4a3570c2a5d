# Mask R-CNN + CrossFormer-B on COCO, 1x. Expected: 47.2 box AP, 42.7 mask AP (paper).
#   python tools/train.py configs/mask_rcnn_crossformer_b_coco.py --pretrained official
_base_ = './mask_rcnn_crossformer_s_coco.py'

model = dict(backbone=dict(arch='b'))
