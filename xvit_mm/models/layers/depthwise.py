"""Depthwise convolutions whose weights have a fast gradient on a CPU."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .cache import autocast_dtype, sizes_are_symbolic

# Kernels up to this width have a fast gradient in oneDNN; 5 x 5 takes 10 times as long as 3 x 3.
FAST_WIDTH = 3


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with a group for each channel: the same parameters and result.

    On a CPU the gradient of the weights is computed for three columns of the kernel at a time.
    """

    def forward(self, x: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and self.weight.requires_grad and x.device.type == 'cpu'
        # Autocast does not reach into an autograd function.
        same = x.dtype == self.weight.dtype == torch.float32 and autocast_dtype('cpu') is None
        if (not trains or not same or self.kernel_size[1] <= FAST_WIDTH or sizes_are_symbolic()
                or self.bias is not None or self.dilation != (1, 1) or not x.shape[0]):
            return super().forward(x)
        return _Depthwise.apply(x, self.weight, self.stride, self.padding)


class _Depthwise(torch.autograd.Function):

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        return (_gradient(grad, x, weight, ctx.stride, ctx.padding, 0) if needs_x else None,
                _gradient_of_weight(grad, x, weight, ctx.stride, ctx.padding)
                if needs_weight else None, None, None)


def _gradient_of_weight(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    x = F.pad(x, (padding[1], padding[1]))
    parts = []
    for first in range(0, weight.shape[3], FAST_WIDTH):
        columns = weight[..., first:first + FAST_WIDTH]
        # What these columns of the kernel see.
        width = (grad.shape[3] - 1) * stride[1] + columns.shape[3]
        seen = x[..., first:first + width]
        parts.append(_gradient(grad, seen, columns, stride, (padding[0], 0), 1))
    return torch.cat(parts, dim=3)


def _gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int],
    of: int,
) -> Tensor:
    """The gradient of the map (0) or of the weights (1)."""
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight),
        [i == of for i in range(3)])[of]
