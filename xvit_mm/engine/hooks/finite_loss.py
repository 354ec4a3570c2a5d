"""Stop a training whose loss has become NaN or infinite, and name the images."""
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from xvit_mm.registry import HOOKS


class DivergedError(RuntimeError):
    """The loss has become inf or NaN; the message names the images with which it did."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a run after several iterations in a row with a loss of inf or NaN.

    The first of them is logged with its images: from the second on, the weights may be the cause.

    Args:
        patience: how many iterations in a row. A single one may be harmless, as an overflow in
            mixed precision, after which the step is left out.

    Raises:
        DivergedError: while training.
    """

    priority = 'HIGH'  # before any hook saves a checkpoint

    def __init__(self, patience: int = 5) -> None:
        if patience < 1:
            raise ValueError(f'patience is {patience}; it must be at least 1')
        self.patience = patience
        self._count = 0
        self._first = ''

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        loss = torch.as_tensor((outputs or {}).get('loss', 0.))
        if torch.isfinite(loss).all():
            self._count = 0
            return
        self._count += 1
        if self._count == 1:
            self._first = (f'the loss is {_values(outputs)} at iteration {runner.iter + 1}, with '
                           f'{_images(data_batch)}')
            runner.logger.log(logging.WARNING, self._first)
        if self._count >= self.patience:
            raise DivergedError(
                f'{self._first}, and has not been finite in {self.patience} iterations in a row. '
                'Checkpoints from before are sound. Look at these images and their labels (python '
                'tools/check_dataset.py CONFIG), lower the learning rate, or clip gradients '
                '(optim_wrapper.clip_grad.max_norm=1); default_hooks.finite_loss.patience waits '
                'longer')


def _values(outputs: Mapping[str, Any]) -> str:
    """The components that are not finite, or the total."""
    values = {name: torch.as_tensor(value).detach() for name, value in outputs.items()}
    broken = [f'{value.item()} ({name})' for name, value in values.items()
              if name != 'loss' and value.numel() == 1 and not torch.isfinite(value)]
    return ', '.join(broken) or str(values['loss'].sum().item())


def _images(batch: Any) -> str:
    samples = batch.get('data_samples') if isinstance(batch, Mapping) else None
    if not isinstance(samples, Sequence):
        return 'images that the data set does not name'
    names = [str(sample.metainfo.get('img_path') or sample.metainfo.get('sample_idx', '?'))
             for sample in samples if hasattr(sample, 'metainfo')]
    return f'the images {", ".join(names)}' if names else 'images that the data set does not name'
