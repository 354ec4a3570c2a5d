from .cls_heads import ClsHead, CrossFormerClsHead, CrossViTClsHead, VTClsHead, XFormerClsHead

__all__ = ['ClsHead', 'CrossFormerClsHead', 'CrossViTClsHead', 'VTClsHead', 'XFormerClsHead']
