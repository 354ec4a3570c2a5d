"""Point-wise layers on maps and tokens, with cheaper forms for inference."""
from collections.abc import Mapping
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .cache import is_compiling, shortcuts_allowed, sizes_are_symbolic
from .plain import is_plain

NormCfg = Mapping[str, Any] | None


class PointwiseConv(ConvModule):
    """A 1 x 1 convolution of maps and its norm; BatchNorm in eval mode is folded into the weights."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_plain(self.conv, nn.Conv2d):
            return super().forward(x)
        folded = self.fold_norm()
        if folded is None:
            return self.norm(self._convolve(x, self.conv.weight, self.conv.bias))
        return self._convolve(x, *folded)

    def fold_norm(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of convolution and norm in one; None if the norm depends on the batch
        or the convolution is not one any more (`is_plain`)."""
        if not is_plain(self.conv, nn.Conv2d):
            return None
        weight, bias = self.conv.weight, self.conv.bias
        if not self.with_norm or isinstance(self.norm, nn.Identity):
            return weight, bias
        norm = self.norm
        if not isinstance(norm, _BatchNorm) or norm.training:
            return None
        if norm.running_mean is None or norm.running_var is None:
            return None
        # In half precision 1 / sqrt(variance) can be far off.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = (0 if bias is None else bias) - norm.running_mean.to(dtype)
        shift = shift * scale if norm.bias is None else shift * scale + norm.bias
        return (weight * scale.view(-1, 1, 1, 1)).to(weight), shift.to(weight)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # One pixel has no spacing, so any dilation is the same convolution. With one, torch takes
        # oneDNN on a CPU also for a single thread, which is twice as fast.
        return F.conv2d(
            x, weight, bias, dilation=2 if x.device.type == 'cpu' else 1, groups=self.conv.groups)


def map_layer(
    in_channels: int,
    out_channels: int,
    *,
    norm_cfg: NormCfg,
    group_width: int | None = None,
    gain: float = 1.,
) -> PointwiseConv:
    """Point-wise layer on a map, [B, C_in, H, W] to [B, C_out, H, W], and its norm.

    `group_width` output channels see one group of the input, as far as the channels divide; by
    default every channel sees all. The output starts at `gain` times the size of the input.
    """
    groups = out_channels // group_width if group_width else 1
    groups = max(1, gcd(groups, in_channels, out_channels))
    layer = PointwiseConv(
        in_channels, out_channels, 1, groups=groups, bias=False, norm_cfg=_copy(norm_cfg),
        act_cfg=None)
    return _initialise(layer, gain)


def token_layer(
    in_channels: int,
    out_channels: int,
    *,
    norm_cfg: NormCfg,
    groups: int = 1,
    gain: float = 1.,
    zero_init: bool = False,
) -> ConvModule:
    """Point-wise layer on tokens, [B, C_in, L] to [B, C_out, L], and its norm.

    The output starts at `gain` times the size of the input. `zero_init`: the norm starts with
    weight 0, so that a residual branch starts as nothing.
    """
    if norm_cfg is not None and norm_cfg['type'] in ('BN', 'BN2d'):
        norm_cfg = dict(norm_cfg, type='BN1d')
    layer = ConvModule(
        in_channels, out_channels, 1, groups=groups, bias=False, conv_cfg=dict(type='Conv1d'),
        norm_cfg=_copy(norm_cfg), act_cfg=None)
    if zero_init and norm_cfg is not None:
        gain = 0.
    return _initialise(layer, gain)


def product_logits(filters: Tensor, layer: PointwiseConv, x: Tensor) -> Tensor:
    """Products of filters [B, C, L] and the pixels of `layer(x)`: [B, L, H * W].

    `f^T (W x) = (W^T f)^T x`: where the norm of the layer is part of W, the filters are projected
    instead of the pixels.
    """
    folded = layer.fold_norm() if shortcuts_allowed() else None
    if folded is None:
        return apply_filters(filters, layer(x))
    weight, bias = folded
    groups = layer.conv.groups
    weight = weight.flatten(1).unflatten(0, (groups, -1))
    by_group = weight.transpose(1, 2) @ filters.unflatten(1, (groups, -1))
    logits = apply_filters(by_group.flatten(1, 2), x)
    return logits if bias is None else logits + filters.transpose(1, 2) @ bias[:, None]


# The functions below read a map and its gradient in the layout that it has, channels first or last:
# a product that transposes them, or a sum of both layouts, takes a multiple of the time on a CPU.
# To compile or export they take the first way: asking for the layout would fix it, and sizes of 1.


def apply_filters(filters: Tensor, x: Tensor) -> Tensor:
    """Products of filters [B, C, L] and the pixels of a map [B, C, H, W]: [B, L, H * W]."""
    if is_compiling() or x.is_contiguous():
        return torch.bmm(filters.transpose(1, 2), x.flatten(2))
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    if x.device.type != 'cpu' or sizes_are_symbolic():
        return (pixels @ filters).transpose(1, 2)
    # Image by image and with filters in rows, or the gradient would transpose the pixels.
    images = zip(pixels, filters.transpose(1, 2).contiguous())
    return torch.stack([F.linear(image, f) for image, f in images]).transpose(1, 2)


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sums over the pixels of a map [B, C, H, W] with weights [B, L, H * W]: [B, C, L]."""
    if is_compiling() or x.is_contiguous() and x.requires_grad:
        return torch.bmm(x.flatten(2), weights.transpose(1, 2))
    return (weights @ x.permute(0, 2, 3, 1).flatten(1, 2)).transpose(1, 2)


def add_weighted_sum(x: Tensor, value: Tensor, weights: Tensor) -> Tensor:
    """`x + value weights`: map [B, C, H, W], tokens [B, C, L], weights [B, heads, L, H * W]."""
    heads = weights.shape[1]
    if heads == 1 and not is_compiling() and not x.is_contiguous():
        pixels = x.permute(0, 2, 3, 1)
        weights = weights[:, 0].transpose(1, 2)
        sums = torch.baddbmm(pixels.flatten(1, 2), weights, value.transpose(1, 2))
        return sums.view(pixels.shape).permute(0, 3, 1, 2)
    base, value = (t.unflatten(1, (heads, -1)).flatten(0, 1) for t in (x.flatten(2), value))
    if is_compiling() and torch.is_grad_enabled():
        # Inductor of torch 2.12 stops at a view of symbolic size that the backward pass needs.
        return x + torch.bmm(value, weights.flatten(0, 1)).view(x.shape)
    return torch.baddbmm(base, value, weights.flatten(0, 1)).view(x.shape)


def _initialise(layer: ConvModule, gain: float) -> ConvModule:
    """The weights keep the variance, so that VT also trains without norms; then comes `gain`."""
    nn.init.kaiming_normal_(layer.conv.weight, nonlinearity='linear')
    weight = layer.norm.weight if layer.with_norm else layer.conv.weight
    if weight is not None:
        weight.data.mul_(gain)
    return layer


def _copy(norm_cfg: NormCfg) -> dict[str, Any] | None:
    return None if norm_cfg is None else dict(norm_cfg)
