"""Measure the maps of a backbone and find the stages that match them."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from xvit_mm.utils.config import ConfigError

# What each of the four stages of our backbones divides the image by.
STRIDES = (4, 8, 16, 32)
# A multiple of every stride; backbones that are made for one size are tried at that.
_SIDES = (256, 224, 384)


@dataclass(frozen=True)
class Level:
    """A map that a backbone returns."""

    channels: int
    stride: int


def build(cfg: Mapping[str, Any], scope: str) -> nn.Module:
    """Build a module of the framework `scope` on the CPU.

    Raises:
        ConfigError: a class does not exist or rejects its arguments.
    """
    try:
        with DefaultScope.overwrite_default_scope(scope):
            return MODELS.build(ConfigDict(cfg))
    except Exception as error:
        # Constructors of other packages raise anything, assertions and download errors included.
        raise ConfigError(
            f'{cfg.get("type")} cannot be built: {type(error).__name__}: {error}') from error


def measure_levels(backbone: nn.Module) -> list[Level]:
    """Return the maps of a backbone, found by running it on an empty image.

    Raises:
        ConfigError: it does not run, or returns something other than maps.
    """
    failures = []
    # Plain vision transformers may hold what only their own size fits.
    size = getattr(backbone, 'img_size', None)
    sides = [*_SIDES, size[0]] if isinstance(size, (list, tuple)) else _SIDES
    # Some backbones do not return themselves here.
    backbone.eval()
    for side in sides:
        try:
            with torch.no_grad():
                maps = backbone(torch.zeros(1, 3, side, side))
        except Exception as error:
            failures.append(f'{side} x {side}: {type(error).__name__}: {error}')
            continue
        maps = [maps] if isinstance(maps, Tensor) else maps
        if not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps):
            raise ConfigError(
                f'{type(backbone).__name__} does not return feature maps [B, C, H, W], so none of '
                'our backbones can take its place')
        return [Level(x.shape[1], round(side / x.shape[2])) for x in maps]
    raise ConfigError(
        f'{type(backbone).__name__} does not run on an image, so what it gives is unknown '
        f'({failures[0]})')


def matching_stages(levels: Sequence[Level], *, by_depth: bool) -> list[int]:
    """Return the stage that takes the place of each map: the one of the same stride.

    With `by_depth`, maps of equal strides (dilated ResNets, plain vision transformers) are matched
    from the deepest backwards, and a single map with the deepest.

    Raises:
        ConfigError: a map has no counterpart among the stages.
    """
    strides = [level.stride for level in levels]
    ascending = strides == sorted(set(strides))
    if by_depth and strides == sorted(strides) and (not ascending or len(strides) == 1):
        if len(strides) <= len(STRIDES) and strides[0] >= STRIDES[0]:
            return list(range(len(STRIDES)))[-len(strides):]
    elif ascending and set(strides) <= set(STRIDES):
        return [STRIDES.index(stride) for stride in strides]
    raise ConfigError(
        f'the old backbone returns maps of strides {", ".join(map(str, strides))}; those of '
        f'xvit_mm return one map each of strides {", ".join(map(str, STRIDES))}, in this order')
