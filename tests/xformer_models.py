"""Small XFormers and their attention, for the tests of XFormer."""
import torch
from torch import nn

from xvit_mm.models.backbones import XFormer
from xvit_mm.models.heads import XFormerClsHead
from xvit_mm.models.layers import CrossFeatureAttention

MODES = ['vector', 'map']
SMALL_ARCH = dict(stem_channels=(8, 8), embed_dims=(16, 16, 24, 32), mv3_depths=(2, 1, 1, 1),
                  xf_depths=(0, 1, 2, 1), token_dims=(0, 24, 32, 40), attn_dims=(0, 16, 16, 16))


def classifier(**settings) -> nn.Sequential:
    return nn.Sequential(XFormer(**settings), XFormerClsHead(1000, 160))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def attention(mode: str, channels: int = 6, attn_dims: int = 10, heads: int = 2, **settings):
    torch.manual_seed(0)
    layer = CrossFeatureAttention(channels, attn_dims, num_heads=heads, mode=mode, **settings)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()
