# An image classifier of mmpretrain with mixup and cutmix as in DeiT. A leaf adds backbone and head,
# whose loss takes scores.
model = dict(
    type='ImageClassifier',
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
