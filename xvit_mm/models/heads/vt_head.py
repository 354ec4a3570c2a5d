"""The classification head of VT-ResNet."""
from collections.abc import Sequence

from torch import Tensor, nn

from xvit_mm.registry import MODELS

from .base import ClsHead


@MODELS.register_module()
class VTClsHead(ClsHead):
    """Mean over the visual tokens, dropout, Linear (arXiv 2006.03677, architecture table).

    Outputs ending with tokens [B, L, in_channels], as `VTResNet(out_type='tokens')` gives them, to
    logits [B, num_classes]. The tokens may be given without a tuple around them.

    Args:
        num_classes: number of classes.
        in_channels: the backbone's `token_channels`.
        dropout: rate; the paper's advanced recipe has 0.2, the default one none.
        loss, init_cfg: as in `ClsHead`.

    Raises:
        ValueError: the last output is not tokens of `in_channels` channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1024,
        *,
        dropout: float = 0.,
        loss: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            init_cfg=init_cfg or dict(type='Normal', layer='Linear', std=0.01, bias=0.))
        self.in_channels, self.num_classes = in_channels, num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        tokens = feats if isinstance(feats, Tensor) else feats[-1]
        if tokens.ndim != 3 or tokens.shape[2] != self.in_channels:
            raise ValueError(
                f'the last output has shape {tuple(tokens.shape)}, not [B, L, {self.in_channels}]: '
                "the backbone needs out_type='tokens' and token_channels equal to in_channels")
        return self.fc(self.dropout(tokens.mean(dim=1)))
