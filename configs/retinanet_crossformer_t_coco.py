# RetinaNet + CrossFormer-T on COCO, 1x. Expected: no published result.
#   python tools/train.py configs/retinanet_crossformer_t_coco.py --pretrained official
_base_ = './retinanet_crossformer_s_coco.py'

model = dict(backbone=dict(arch='t'), neck=dict(in_channels=[64, 128, 256, 512]))
