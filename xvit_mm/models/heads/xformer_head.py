"""The classification head of XFormer."""
from collections.abc import Sequence

from mmcv.cnn import ConvModule
from torch import Tensor, nn

from xvit_mm.registry import MODELS

from .base import ClsHead

HIDDEN_CHANNELS = 640


@MODELS.register_module()
class XFormerClsHead(ClsHead):
    """1 x 1 convolution with BatchNorm and SiLU to 640 channels, mean over positions, Linear.

    Maps ending with [B, in_channels, H, W] to logits [B, num_classes]. A single map may be given
    without a tuple around it. [S] the order of the layers; [N] the 640 channels.

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
        self.conv = ConvModule(
            in_channels, HIDDEN_CHANNELS, 1, norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU'))
        self.fc = nn.Linear(HIDDEN_CHANNELS, num_classes)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        last = feats if isinstance(feats, Tensor) else feats[-1]
        if last.shape[1] != self.in_channels:
            raise ValueError(
                f'the last map has {last.shape[1]} channels but in_channels={self.in_channels}: '
                'give the head the last of the backbone\'s out_channels')
        return self.fc(self.conv(last).mean((2, 3)))
