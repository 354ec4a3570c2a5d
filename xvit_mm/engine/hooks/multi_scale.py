"""Batches of several sizes in training, all processes with the same one."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from xvit_mm.registry import HOOKS
from xvit_mm.utils.config import ConfigError

_DENSE_PARTS = ('bbox_head', 'rpn_head', 'roi_head', 'mask_head', 'decode_head')  # of mmdet, mmseg


@HOOKS.register_module()
class MultiScaleHook(Hook):
    """Resizes each training batch of a classifier to a size drawn at random, on its device.

    The sizes are those of MobileViT's multi-scale sampler (arXiv 2110.02178), which also makes
    small images a larger batch; here the batch stays. The size depends on the seed and the number
    of the iteration only, so it is the same in all processes and in a resumed run.

    Args:
        sizes: sides in pixels; images are square.
        interval: iterations with one size.
        seed: draws another order of sizes.

    Raises:
        ValueError: a size or the interval is not a whole number of at least 1, or there is no size.
    """

    def __init__(
        self,
        sizes: Sequence[int] = (160, 192, 256, 288, 320),
        interval: int = 1,
        seed: int = 0,
    ) -> None:
        for name, values in (('sizes', list(sizes)), ('interval', [interval])):
            if not values or not all(isinstance(n, int) and n >= 1 for n in values):
                raise ValueError(f'{name}={values}: give whole numbers of at least 1')
        self.sizes, self.interval, self.seed = tuple(sizes), interval, seed
        self._iteration = 0
        self._handle: Any = None

    def size_at(self, iteration: int) -> int:
        """Return the side of the images of a training iteration, counted from 0."""
        random = np.random.default_rng((self.seed, iteration // self.interval))
        return self.sizes[random.integers(len(self.sizes))]

    def before_train(self, runner: Runner) -> None:
        """Begin to resize.

        Raises:
            ConfigError: the model is not a classifier; its boxes or label maps would stay as they are.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if found := [part for part in _DENSE_PARTS if hasattr(model, part)]:
            raise ConfigError(
                f'MultiScaleHook resizes images but neither boxes nor label maps, and '
                f'{type(model).__name__} has a {found[0]}. It is for classifiers; here, take a '
                'transform such as RandomResize in the pipeline')
        self._handle = model.data_preprocessor.register_forward_hook(self._resize)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._iteration = runner.iter

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()

    def _resize(self, module: nn.Module, given: tuple, output: dict[str, Any]) -> dict[str, Any]:
        _, training = given if len(given) == 2 else (*given, False)
        if training:
            output['inputs'] = resize(output['inputs'], self.size_at(self._iteration))
        return output


def resize(images: Tensor, side: int) -> Tensor:
    """[B, 3, H, W] to [B, 3, side, side]; without aliasing where they become smaller."""
    if images.shape[2:] == (side, side):
        return images
    return F.interpolate(
        images, size=(side, side), mode='bilinear', antialias=True, align_corners=False)
