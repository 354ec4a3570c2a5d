# RetinaNet + CrossFormer-B on COCO, 1x. Expected: 46.2 box AP (paper).
#   python tools/train.py configs/retinanet_crossformer_b_coco.py --pretrained official
_base_ = './retinanet_crossformer_s_coco.py'

model = dict(backbone=dict(arch='b'))
