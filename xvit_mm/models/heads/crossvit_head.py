"""The classification head of CrossViT."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xvit_mm.registry import MODELS

from ..layers import NORM_EPS
from .base import ClsHead


@MODELS.register_module()
class CrossViTClsHead(ClsHead):
    """LayerNorm and Linear for the class token of each branch, mean of the logits.

    Class tokens, one [B, in_channels[i]] per branch, to logits [B, num_classes]. They come from
    `CrossViT(out_type='cls_token')`, whose `out_channels` are the `in_channels`.

    Raises:
        ValueError: the features are not class tokens of these widths.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        *,
        loss: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.))
        if not isinstance(in_channels, Sequence) or len(in_channels) != 2:
            raise ValueError(
                f'in_channels={in_channels!r}: give two widths, those of the small-patch and the '
                'large-patch branch, as in the backbone\'s out_channels')
        self.in_channels, self.num_classes = tuple(in_channels), num_classes
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in in_channels)
        self.fcs = nn.ModuleList(nn.Linear(width, num_classes) for width in in_channels)

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        shapes = [tuple(x.shape) for x in feats]
        if [shape[1:] for shape in shapes] != [(width,) for width in self.in_channels]:
            raise ValueError(
                f'features of shapes {shapes}, but in_channels={self.in_channels} asks for class '
                "tokens [B, C] of these widths: give the backbone out_type='cls_token'")
        logits = [fc(norm(x)) for fc, norm, x in zip(self.fcs, self.norms, feats)]
        return torch.stack(logits).mean(dim=0)
