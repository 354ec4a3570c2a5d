# CrossViT-18-dagger-384 on ImageNet-1K: CrossViT-18-dagger fine-tuned at 408 x 408, which are 384
# for the large patches. Expected: 83.9 top-1 (paper).
#   python tools/train.py configs/crossvit_18_dagger_384_imagenet.py \
#       --pretrained official://crossvit_18_dagger_224
_base_ = './crossvit_15_dagger_384_imagenet.py'

model = dict(backbone=dict(arch='18_dagger_384'), head=dict(in_channels=(224, 448)))
