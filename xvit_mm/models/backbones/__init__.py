from .base import Backbone
from .crossformer import CrossFormer
from .crossvit import CrossViT
from .vt_resnet import VTResNet
from .xformer import XFormer

__all__ = ['Backbone', 'CrossFormer', 'CrossViT', 'VTResNet', 'XFormer']
