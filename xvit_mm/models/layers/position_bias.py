"""Dynamic position bias of CrossFormer (arXiv 2108.00154)."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import sizes_are_symbolic
from .plain import is_plain


class DynamicPositionBias(nn.Module):
    """The bias of a pair of tokens as a function of their offset (DPB, paper section 3.3, eq. 4).

    An MLP of width C / 16 from offsets [D, 2] (rows, columns), in tokens of the group, to one bias
    per head, [D, heads].
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        width = embed_dims // 16
        layers: list[nn.Module] = [nn.Linear(2, width)]
        for out in (width, width, num_heads):
            layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, offsets: Tensor) -> Tensor:
        norm: Any = self.layers[1]  # the linear layers may be quantised
        return self.layers(offsets.to(norm.weight))

    def is_plain(self) -> bool:
        """Whether the layers are those of the constructor, none wrapped or replaced."""
        return all(is_plain(layer, nn.Linear if i % 3 == 0 else nn.LayerNorm)
                   for i, layer in enumerate(self.layers) if i % 3 != 2)


def position_biases(modules: Sequence[DynamicPositionBias], offsets: Tensor) -> Tensor:
    """The same as `torch.stack([module(offsets) for module in modules])`, [modules, D, heads].

    All networks in one batched pass: a third of the launches, which matters where they are small
    and depend on weights that the last training step has changed.
    """
    if sizes_are_symbolic() or not all(module.is_plain() for module in modules):
        # Exporters know layers better than their parts; the result is a constant anyway.
        return torch.stack([module(offsets) for module in modules])
    flat = torch.cat([p.flatten() for module in modules for p in module.parameters()])
    parameters = list(modules[0].parameters())
    sizes = [p.numel() for p in parameters]
    weights = iter([chunk.unflatten(1, p.shape) for chunk, p in zip(
        flat.view(len(modules), -1).split(sizes, dim=1), parameters)])
    x = offsets.to(flat).expand(len(modules), -1, -1)
    for layer in modules[0].layers:
        if isinstance(layer, nn.Linear):
            weight, bias = next(weights), next(weights)
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        elif isinstance(layer, nn.LayerNorm):
            weight, bias = next(weights), next(weights)
            x = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
            x = torch.addcmul(bias[:, None], x, weight[:, None])
        else:
            x = layer(x)
    return x
