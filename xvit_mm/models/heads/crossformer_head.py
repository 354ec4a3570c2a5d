"""The classification head of CrossFormer."""
from collections.abc import Sequence

from torch import Tensor, nn

from xvit_mm.registry import MODELS

from .base import ClsHead


@MODELS.register_module()
class CrossFormerClsHead(ClsHead):
    """LayerNorm, mean over the positions of the last map, Linear.

    Maps ending with [B, in_channels, H, W] to logits [B, num_classes]. A single map may be given
    without a tuple around it.

    Raises:
        ValueError: the last map does not have `in_channels` channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        loss: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.))
        self.in_channels, self.num_classes = in_channels, num_classes
        self.norm = nn.LayerNorm(in_channels)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        last = feats if isinstance(feats, Tensor) else feats[-1]
        if last.shape[1] != self.in_channels:
            raise ValueError(
                f'the last map has {last.shape[1]} channels but in_channels={self.in_channels}: '
                'give the head the last of the backbone\'s out_channels')
        return self.fc(self.norm(last.flatten(2).transpose(1, 2)).mean(1))
