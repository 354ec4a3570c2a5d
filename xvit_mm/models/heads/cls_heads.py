"""Classification heads: what a backbone returns, to logits [B, num_classes].

`ClsHead` holds what they share. As modules the heads need nothing but torch; `loss` and `predict`
serve mmpretrain's `ImageClassifier`.
"""
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from xvit_mm.registry import MODELS

from ..layers import NORM_EPS

if TYPE_CHECKING:
    from mmpretrain.structures import DataSample

XFORMER_HIDDEN_CHANNELS = 640


class ClsHead(BaseModule):
    """Base of the classification heads.

    A subclass defines `build_layers` and `forward`.

    Args:
        num_classes: number of classes.
        in_channels: channels of what the head reads, as the backbone states them.
        loss: config of any loss that takes logits and labels, for instance
            `dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1)`. Default: cross
            entropy, with class indices or, after mixup and cutmix, with class scores.
        cal_acc: also log `accuracy_top-1` of the training images, in percent. Mixed batches have
            none.
        init_cfg: as in mmengine; default the class's `default_init_cfg`.
    """

    default_init_cfg: ClassVar[dict] = dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.)

    def __init__(
        self,
        num_classes: int,
        in_channels: Any,
        *,
        loss: dict | None = None,
        cal_acc: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or self.default_init_cfg)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.cal_acc = cal_acc
        self.loss_module: nn.Module = MODELS.build(loss) if loss else nn.CrossEntropyLoss()
        self.build_layers(num_classes, in_channels)

    @abstractmethod
    def build_layers(self, num_classes: int, in_channels: Any) -> None:
        """Set the layers that `forward` uses."""

    @abstractmethod
    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        """Compute logits [B, num_classes] from what the backbone returns.

        Heads that read only the last output also take it without a tuple around it.

        Raises:
            ValueError: the features are not what `in_channels` says.
        """

    def loss(self, feats: Sequence[Tensor], data_samples: 'list[DataSample]') -> dict[str, Tensor]:
        """Compute the loss on samples with `gt_label` or, if a batch was mixed, `gt_score`."""
        logits = self(feats)
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
            return dict(loss=self.loss_module(logits, target))
        target = torch.cat([sample.gt_label for sample in data_samples])
        losses = dict(loss=self.loss_module(logits, target))
        if self.cal_acc:
            correct = logits.argmax(dim=1) == target
            losses['accuracy_top-1'] = 100 * correct.float().mean()
        return losses

    def predict(
        self, feats: Sequence[Tensor], data_samples: 'list[DataSample | None] | None' = None
    ) -> 'list[DataSample]':
        """Return samples with `pred_score` [num_classes] and `pred_label` set."""
        from mmpretrain.structures import DataSample
        scores = F.softmax(self(feats), dim=1)
        samples = [sample or DataSample() for sample in data_samples or [None] * len(scores)]
        for sample, score in zip(samples, scores):
            sample.set_pred_score(score).set_pred_label(score.argmax().detach())
        return samples

    def _last_map(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        """Return the last map [B, in_channels, H, W]."""
        last = _last(feats)
        if last.shape[1] != self.in_channels:
            raise ValueError(
                f'the last map has {last.shape[1]} channels but in_channels={self.in_channels}: '
                "set in_channels to the last of the backbone's out_channels")
        return last


def _last(feats: Sequence[Tensor] | Tensor) -> Tensor:
    return feats if isinstance(feats, Tensor) else feats[-1]


@MODELS.register_module()
class CrossFormerClsHead(ClsHead):
    """LayerNorm, mean over the positions of the last map [B, in_channels, H, W], Linear."""

    def build_layers(self, num_classes: int, in_channels: int) -> None:
        self.norm = nn.LayerNorm(in_channels)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        tokens = self._last_map(feats).flatten(2).transpose(1, 2)
        return self.fc(self.norm(tokens).mean(1))


@MODELS.register_module()
class XFormerClsHead(ClsHead):
    """1 x 1 convolution to 640 channels with BatchNorm and SiLU, mean over positions, Linear.

    Reads the last map [B, in_channels, H, W]. The order of the layers comes from secondary sources
    on the paper; 640 channels give its number of parameters.
    """

    def build_layers(self, num_classes: int, in_channels: int) -> None:
        self.conv = ConvModule(
            in_channels, XFORMER_HIDDEN_CHANNELS, 1,
            norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU'))
        self.fc = nn.Linear(XFORMER_HIDDEN_CHANNELS, num_classes)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        return self.fc(self.conv(self._last_map(feats)).mean((2, 3)))


@MODELS.register_module()
class CrossViTClsHead(ClsHead):
    """LayerNorm and Linear for the class token of each branch, mean of the logits.

    Reads two class tokens [B, in_channels[i]], as `CrossViT(out_type='cls_token')` returns them;
    `in_channels` are its `out_channels`.
    """

    def build_layers(self, num_classes: int, in_channels: Sequence[int]) -> None:
        if not isinstance(in_channels, Sequence) or len(in_channels) != 2:
            raise ValueError(
                f'in_channels={in_channels!r}: give two widths, those of the small-patch and the '
                "large-patch branch, as in the backbone's out_channels")
        self.in_channels = tuple(in_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in in_channels)
        self.fcs = nn.ModuleList(nn.Linear(width, num_classes) for width in in_channels)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        shapes = [tuple(token.shape) for token in feats]
        if [shape[1:] for shape in shapes] != [(width,) for width in self.in_channels]:
            raise ValueError(
                f'features of shapes {shapes}, but in_channels={self.in_channels} asks for class '
                "tokens [B, C] of these widths: give the backbone out_type='cls_token'")
        logits = [fc(norm(token)) for fc, norm, token in zip(self.fcs, self.norms, feats)]
        return torch.stack(logits).mean(dim=0)


@MODELS.register_module()
class VTClsHead(ClsHead):
    """Mean over the visual tokens, dropout, Linear (arXiv 2006.03677, architecture table).

    Reads the last output, tokens [B, L, in_channels], as `VTResNet(out_type='tokens')` returns it.

    Args:
        num_classes, loss, cal_acc, init_cfg: as in `ClsHead`.
        in_channels: the backbone's `token_channels`.
        dropout: rate; the paper's advanced recipe has 0.2, the default one none.
    """

    default_init_cfg = dict(type='Normal', layer='Linear', std=0.01, bias=0.)

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1024,
        *,
        dropout: float = 0.,
        loss: dict | None = None,
        cal_acc: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            num_classes, in_channels, loss=loss, cal_acc=cal_acc, init_cfg=init_cfg)
        self.dropout = nn.Dropout(dropout)

    def build_layers(self, num_classes: int, in_channels: int) -> None:
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        tokens = _last(feats)
        if tokens.ndim != 3 or tokens.shape[2] != self.in_channels:
            raise ValueError(
                f'the last output has shape {tuple(tokens.shape)}, not [B, L, {self.in_channels}]: '
                "the backbone needs out_type='tokens' and token_channels equal to in_channels")
        return self.fc(self.dropout(tokens.mean(dim=1)))
