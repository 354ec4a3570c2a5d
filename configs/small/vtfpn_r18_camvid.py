# VT-FPN in the place of FPN, with the backbone and the recipe of fpn_r18_camvid.py. Expected: no
# published result; docs/vt.md has ours.
#   python tools/train.py configs/small/vtfpn_r18_camvid.py --data-root FOLDER
_base_ = './fpn_r18_camvid.py'

model = dict(
    neck=dict(
        _delete_=True,
        type='xvit_mm.VTFPN',
        in_channels=[64, 128, 256, 512],
        out_channels=256,
        num_outs=4))
