# RetinaNet + VT-ResNet-18 with the recipe of retinanet_crossformer_mini_bccd.py. Its counterpart is
# retinanet_r18_bccd.py.
#   python tools/train.py configs/small/retinanet_vt_r18_bccd.py --data-root FOLDER
_base_ = './retinanet_crossformer_mini_bccd.py'

model = dict(backbone=dict(_delete_=True, type='xvit_mm.VTResNet', arch='r18'))
