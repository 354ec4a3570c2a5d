# MiT-B0 of mmseg with the recipe of segformer_xformer_camvid.py, for comparison.
#   python tools/train.py configs/small/segformer_mit_b0_camvid.py --data-root FOLDER
_base_ = './segformer_xformer_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='MixVisionTransformer',
        embed_dims=32,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        mlp_ratio=4,
        qkv_bias=True,
        drop_path_rate=0.1),
    decode_head=dict(in_channels=[32, 64, 160, 256]))
