# 160k iterations of AdamW, with ten times the learning rate in the head: SegFormer's recipe. Batch 16
# on ADE20K, 8 on Cityscapes.
_base_ = './adamw_160k.py'

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.))))
