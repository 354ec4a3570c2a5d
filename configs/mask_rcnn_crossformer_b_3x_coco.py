# Mask R-CNN + CrossFormer-B on COCO, 3x. Expected: 49.8 box AP, 44.5 mask AP (paper).
#   python tools/train.py configs/mask_rcnn_crossformer_b_3x_coco.py --pretrained official
_base_ = './mask_rcnn_crossformer_s_3x_coco.py'

model = dict(backbone=dict(arch='b'))
