# RetinaNet + CrossFormer-L on COCO, 1x. Expected: no published result.
#   python tools/train.py configs/retinanet_crossformer_l_coco.py --pretrained official
_base_ = './retinanet_crossformer_s_coco.py'

model = dict(backbone=dict(arch='l'), neck=dict(in_channels=[128, 256, 512, 1024]))
