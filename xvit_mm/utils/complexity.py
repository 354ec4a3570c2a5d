"""Parameters and multiply-adds (MACs) of a model, measured by running it.

Papers that say FLOPs mean these MACs. Counted are convolutions, linear layers and all products of
matrices, those inside fused attention included; norms, activations, softmax, pooling, resizing and
sums are not. Formulas count as they are written, also where a model has a cheaper way to the same
result in eval mode; but CrossViT's cross-attention, which has no other way, counts without the
projections that it skips. Custom compiled operators, such as deformable convolution, are not seen.
"""
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from xvit_mm.models.layers.cache import without_shortcuts

from .images import image_channels

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """What a model, or a part of it, costs for one image.

    parts: the direct children of the model that have parameters or do work. What a model computes
    outside its children is in its own figures only.
    """

    parameters: int
    macs: int
    parts: dict[str, 'Cost'] = field(default_factory=dict)


def count_macs(
    model: nn.Module, input_size: int | Sequence[int], *, in_channels: int | None = None
) -> int:
    """MACs of `model` for one image of `input_size`; see `measure_cost`."""
    return measure_cost(model, input_size, in_channels=in_channels).macs


def measure_cost(
    model: nn.Module, input_size: int | Sequence[int], *, in_channels: int | None = None
) -> Cost:
    """Run `model` once in eval mode on an image of noise and count.

    Args:
        model: any module from images [1, in_channels, H, W], or a classifier, detector or segmentor
            of OpenMMLab, which runs without post-processing. The second stage of a detector
            counts with the proposals that its first stage makes of the noise, 1000 at most.
        input_size: side of a square, or (height, width), in pixels.
        in_channels: of the image; default `in_channels` of a backbone of this package, else 3.

    Raises:
        ValueError: `input_size` is not one or two positive whole numbers.
    """
    height, width = _check_size(input_size)
    weight = next(model.parameters(), torch.empty(0))
    images = torch.randn(1, in_channels or image_channels(model), height, width).to(weight)
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with (
        _eval_mode(model), torch.no_grad(), without_shortcuts(), counter,
        _watch_children(model, counter) as flops,
    ):
        if isinstance(model, BaseModel):
            model(images, [_data_sample(height, width)], mode='tensor')
        else:
            model(images)
    # torch counts a multiply-add as two operations.
    parts = {
        name: Cost(_num_parameters(part), flops[name] // 2)
        for name, part in model.named_children()
    }
    return Cost(
        parameters=_num_parameters(model),
        macs=counter.get_total_flops() // 2,
        parts={name: cost for name, cost in parts.items() if cost.parameters or cost.macs})


def _check_size(input_size: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(input_size) if isinstance(input_size, Sequence) else (input_size, input_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            f'input_size={input_size!r}: give the side of a square or (height, width), in pixels')
    return sides


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def _watch_children(model: nn.Module, counter: FlopCounterMode) -> Iterator[Counter[str]]:
    """Operations counted while a module of each direct child runs, by the child's name.

    The counter's own figures per module are no help: torch 2.1 has none for models whose inputs are
    not tensors alone, and no version sees the heads of mmdet and mmseg, whose `forward` is called
    directly.
    """
    flops: Counter[str] = Counter()
    active: Counter[str] = Counter()

    def enter(name: str, *args: Any) -> None:
        if not active[name]:
            flops[name] -= counter.get_total_flops()
        active[name] += 1

    def leave(name: str, *args: Any) -> None:
        active[name] -= 1
        if not active[name]:
            flops[name] += counter.get_total_flops()

    hooks = []
    for name, child in model.named_children():
        for module in child.modules():
            hooks.append(module.register_forward_pre_hook(partial(enter, name)))
            hooks.append(module.register_forward_hook(partial(leave, name)))
    try:
        yield flops
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    # Some modules of mmpretrain do not return self here.
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _data_sample(height: int, width: int) -> BaseDataElement:
    size = (height, width)
    return BaseDataElement(metainfo=dict(
        img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size,
        scale_factor=(1., 1.)))


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _matrix_vector(matrix: Any, vector: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _added_matrix_vector(bias: Any, matrix: Any, vector: Any, **kwargs: Any) -> int:
    return _matrix_vector(matrix, vector)


def _vector_vector(first: Any, second: Any, **kwargs: Any) -> int:
    return 2 * first[0]


# Operations that torch's counter lacks, each a function of the shapes of its inputs. The first is
# the fused attention of a CPU.
_FORMULAS = {
    getattr(aten, name): formula for name, formula in {
        '_scaled_dot_product_flash_attention_for_cpu': _attention,
        '_scaled_dot_product_fused_attention_overrideable': _attention,
        'mv': _matrix_vector,
        'addmv': _added_matrix_vector,
        'dot': _vector_vector,
    }.items() if hasattr(aten, name)
}
