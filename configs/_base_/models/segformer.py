# The all-MLP decoder of SegFormer. A leaf adds the backbone, its channels and the number of classes.
_base_ = './encoder_decoder.py'

model = dict(
    decode_head=dict(
        type='SegformerHead',
        in_index=[0, 1, 2, 3],
        channels=256))
