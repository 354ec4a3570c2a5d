from .base import ClsHead
from .crossformer_head import CrossFormerClsHead
from .crossvit_head import CrossViTClsHead
from .vt_head import VTClsHead
from .xformer_head import XFormerClsHead

__all__ = ['ClsHead', 'CrossFormerClsHead', 'CrossViTClsHead', 'VTClsHead', 'XFormerClsHead']
