"""What the classification heads share: losses and predictions in mmpretrain's classifiers."""
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from xvit_mm.registry import MODELS

if TYPE_CHECKING:
    from mmpretrain.structures import DataSample


class ClsHead(BaseModule):
    """Base of the classification heads: the maps of a backbone to logits [B, num_classes].

    As a module it needs nothing but torch; `loss` and `predict` serve mmpretrain's
    `ImageClassifier`.

    Args:
        loss: a config of any loss that takes logits and labels, for instance
            `dict(type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1)`. Default: cross
            entropy, with class indices or, after mixup and cutmix, with class scores.
        init_cfg: as in mmengine.
    """

    def __init__(self, *, loss: dict | None, init_cfg: dict | list[dict] | None) -> None:
        super().__init__(init_cfg)
        self.loss_module: nn.Module = MODELS.build(loss) if loss else nn.CrossEntropyLoss()

    @abstractmethod
    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Features, as the backbone returns them, to logits [B, num_classes]."""

    def loss(self, feats: Sequence[Tensor], data_samples: 'list[DataSample]') -> dict[str, Tensor]:
        """The loss on samples with `gt_label` or, if a batch was mixed, `gt_score`."""
        if 'gt_score' in data_samples[0]:
            target = torch.stack([sample.gt_score for sample in data_samples])
        else:
            target = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=self.loss_module(self(feats), target))

    def predict(
        self, feats: Sequence[Tensor], data_samples: 'list[DataSample | None] | None' = None
    ) -> 'list[DataSample]':
        """Samples with `pred_score` [num_classes] and `pred_label` set."""
        from mmpretrain.structures import DataSample
        scores = F.softmax(self(feats), dim=1)
        samples = [sample or DataSample() for sample in data_samples or [None] * len(scores)]
        for sample, score in zip(samples, scores):
            sample.set_pred_score(score).set_pred_label(score.argmax().detach())
        return samples
