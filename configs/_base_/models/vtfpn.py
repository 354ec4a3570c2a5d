# Semantic FPN with VT-FPN in the place of FPN. A leaf adds the backbone, its channels and the number
# of classes.
_base_ = './semantic_fpn.py'

model = dict(neck=dict(type='xvit_mm.VTFPN', norm_cfg=dict(type='SyncBN')))
