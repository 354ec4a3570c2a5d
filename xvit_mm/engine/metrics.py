"""Metrics of a validation that mmpretrain does not have."""
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import nn

from xvit_mm.registry import METRICS, MODELS


@METRICS.register_module()
class ClassificationLoss(BaseMetric):
    """The loss of a classifier on the validation images, logged as `val_loss`.

    It is computed from the predicted probabilities p: log p differs from the logits by one number
    per image, which a loss made of a softmax cancels.

    Args:
        loss: a config of any loss that takes logits [B, C] and labels [B] and begins with a
            softmax, as `LabelSmoothLoss` does; usually the one used for training. Default: cross
            entropy.
    """

    def __init__(self, loss: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_module: nn.Module = MODELS.build(loss) if loss else nn.CrossEntropyLoss()

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        scores = torch.stack([sample['pred_score'] for sample in data_samples]).float()
        labels = torch.cat([sample['gt_label'] for sample in data_samples])
        # A probability may underflow to 0, whose logarithm is not finite.
        logits = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        self.results += [self.loss_module(logit[None], label[None]).item()
                         for logit, label in zip(logits, labels.to(logits.device))]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(val_loss=sum(results) / len(results))
