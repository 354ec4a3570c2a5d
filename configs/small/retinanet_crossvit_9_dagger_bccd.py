# RetinaNet + CrossViT-9-dagger with the recipe of retinanet_crossformer_mini_bccd.py.
#   python tools/train.py configs/small/retinanet_crossvit_9_dagger_bccd.py --data-root FOLDER
_base_ = './retinanet_crossformer_mini_bccd.py'

model = dict(
    # RetinaNet has no use for the map of stride 4.
    backbone=dict(
        _delete_=True, type='xvit_mm.CrossViT', arch='9_dagger', out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 256], start_level=0))
