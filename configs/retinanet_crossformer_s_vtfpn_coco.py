# RetinaNet + CrossFormer-S with VT-FPN in the place of FPN, on COCO, 1x. Expected: no published
# result.
#   python tools/train.py configs/retinanet_crossformer_s_vtfpn_coco.py --pretrained official
_base_ = './retinanet_crossformer_s_coco.py'

model = dict(neck=dict(type='xvit_mm.VTFPN', norm_cfg=dict(type='SyncBN')))
