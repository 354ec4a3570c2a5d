"""Linear layers that take less time on a CPU and less memory in training than torch's.

They compute what `nn.Linear` and `nn.GELU` do. A layer that is no longer plain, because an adapter,
a quantizer or a sharding replaced it or its weight, or because a hook watches it, is called as a
module, which is the only way that knows what it has become.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import autocast_dtype, sizes_are_symbolic
from .plain import has_hooks, is_plain

# To add a bias, torch copies it to every token before the product. From about this many tokens on,
# oneDNN's 1 x 1 convolution is faster: up to 1.6 times for 96 channels, as fast for 768.
MANY_TOKENS = 4096


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` for x: [..., C]."""
    if not _may_be_skipped(layer) or not _convolution_pays(x, layer.weight):
        return layer(x)
    return _Linear.apply(x, layer.weight, layer.bias, False)


def apply_linear_gelu_linear(first: nn.Linear, gelu: nn.GELU, second: nn.Linear, x: Tensor) -> Tensor:
    """`second(gelu(first(x)))` for x: [..., C].

    In the backward pass GELU is computed again from the output of `first`, so that its own is not
    kept: a sixth less memory for CrossFormer-S, for about 1 % of a training step.
    """
    hidden = apply_linear(first, x)
    exact = type(gelu) is nn.GELU and gelu.approximate == 'none' and not has_hooks(gelu)
    if sizes_are_symbolic() or not (exact and _may_be_skipped(first) and _may_be_skipped(second)):
        return second(gelu(hidden))
    if not hidden.requires_grad:
        return apply_linear(second, torch.ops.aten.gelu_(hidden))
    tensors: tuple[Tensor, ...] = hidden, second.weight, second.bias
    dtype = autocast_dtype(hidden.device.type)
    if dtype is not None and hidden.dtype != torch.float64:
        # Autocast does not reach into an autograd function.
        tensors = tuple(t.to(dtype) for t in tensors)
    return _Linear.apply(*tensors, True)


class _Linear(torch.autograd.Function):
    """Linear layer of x or of GELU(x), which keeps x alone for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, activate: bool) -> Tensor:
        x = F.gelu(x) if activate else x
        if not _convolution_pays(x, weight):
            return F.linear(x, weight, bias)
        # Tokens as a map with one row, channels last.
        row = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
        # One pixel has no spacing, so any dilation is the same convolution. With one, torch takes
        # oneDNN also for a single thread.
        out = F.conv2d(row, weight[:, :, None, None], bias, dilation=2)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.activate = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = grad_weight = None
        if needs_weight:
            # Freed before the gradient of x, which is as large.
            grad_weight = rows.t() @ (F.gelu(x) if ctx.activate else x).flatten(0, -2)
        if needs_x:
            grad_x = grad @ weight
            if ctx.activate:
                grad_x = torch.ops.aten.gelu_backward(grad_x, x)
        return grad_x, grad_weight, rows.sum(dim=0) if needs_bias else None, None


def _may_be_skipped(layer: nn.Linear) -> bool:
    return is_plain(layer, nn.Linear) and layer.bias is not None and not has_hooks(layer)


def _convolution_pays(x: Tensor, weight: Tensor) -> bool:
    return (x.device.type == 'cpu' and x.dtype == weight.dtype == torch.float32
            and not sizes_are_symbolic() and autocast_dtype('cpu') is None
            and x.numel() >= MANY_TOKENS * x.shape[-1] > 0)
