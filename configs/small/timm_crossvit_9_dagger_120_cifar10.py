# timm's CrossViT-9-dagger with the recipe of crossvit_9_dagger_120_cifar10.py, for comparison.
#   python tools/train.py configs/small/timm_crossvit_9_dagger_120_cifar10.py
_base_ = './crossvit_9_dagger_120_cifar10.py'

model = dict(
    _delete_=True,
    type='TimmClassifier',
    model_name='crossvit_9_dagger_240',
    img_size=120,
    num_classes=10,
    drop_path_rate=0.1,
    loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1))
