# The same with mmdet's ResNet-18, for comparison: same recipe, images and number of iterations.
#   python tools/train.py configs/small/retinanet_r18_bccd.py --data-root FOLDER
_base_ = './retinanet_crossformer_mini_bccd.py'

model = dict(
    # From scratch, so nothing is frozen and BatchNorm learns.
    backbone=dict(_delete_=True, type='ResNet', depth=18, frozen_stages=-1, norm_eval=False))
