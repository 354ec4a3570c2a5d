# CrossViT-9-dagger on CIFAR-10 from scratch, with the recipe of a public notebook: 224 x 224,
# Adam, batch 256, 100 epochs. Losses and accuracies on training and test images are drawn in one
# picture.
#   python tools/train.py configs/small/crossvit_9_dagger_adam_cifar10.py
_base_ = [
    '../_base_/models/classifier.py', '../_base_/datasets/cifar10_jitter.py',
    '../_base_/schedules/cifar10_adam_100e.py', '../_base_/classification_runtime.py'
]
loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model = dict(
    # Images of 224 as they are for the large patches.
    backbone=dict(
        type='xvit_mm.CrossViT', arch='9_dagger', out_type='cls_token', image_branch='large'),
    head=dict(
        type='xvit_mm.CrossViTClsHead', num_classes=10, in_channels=(128, 256), loss=loss,
        cal_acc=True))
val_evaluator = [
    dict(type='Accuracy', topk=(1, )),
    dict(type='xvit_mm.ClassificationLoss', loss=loss),
]
test_evaluator = val_evaluator
# One line of the log, and one point of the curves, for each epoch: its mean.
default_hooks = dict(logger=dict(interval=10000))
log_processor = dict(
    custom_cfg=[
        dict(data_src='loss', method_name='mean', window_size='epoch'),
        dict(data_src='accuracy_top-1', method_name='mean', window_size='epoch'),
    ])
