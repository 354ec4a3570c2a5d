"""Which tokens attend to each other: CrossFormer's short- and long-distance groups.

Both kinds split the rows and the columns of a map into groups; a 2-D group is a group of rows
crossed with a group of columns. With group size G and interval I an axis is cut into windows of
G * I positions, and positions of a window that are equal modulo I form a group: I = 1 gives G
neighbours (short distance), I > 1 gives G positions that lie I apart (long distance).

The papers pad a map that G * I does not divide and mask the padding. A masked key has no weight
and a padded query is thrown away, so the groups at the border simply hold fewer tokens: the same
result without padding, masks, or the NaN that a group of nothing but padding can give.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grouping:
    """An order of a batch's tokens in which every group is contiguous, and its inverse.

    order, inverse: [B * H * W] indices into the tokens, as [B, H, W] flattened.
    shapes: (height, width) in tokens of the groups; groups of one shape stand together.
    counts: how many groups of each shape an image has.
    """

    order: Tensor
    inverse: Tensor
    shapes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]

    def gather(self, tokens: Tensor) -> Tensor:
        """[B * H * W, C] from map order to group order."""
        return _permuted(tokens, self.order, self.inverse)

    def scatter(self, tokens: Tensor) -> Tensor:
        """[B * H * W, C] from group order back to map order."""
        return _permuted(tokens, self.inverse, self.order)

    def split(self, tokens: Tensor) -> Iterator[Tensor]:
        """[B * H * W, C] in group order to one [groups, tokens per group, C] for each shape."""
        sizes = [n * h * w for n, (h, w) in zip(self.counts, self.shapes)]
        batch = tokens.shape[0] // sum(sizes)
        for chunk, (height, width) in zip(tokens.split([batch * n for n in sizes]), self.shapes):
            yield chunk.unflatten(0, (-1, height * width))


def group_tokens(
    batch: int, height: int, width: int, group_size: int, interval: int, device: torch.device
) -> Grouping:
    """Group the tokens of `batch` maps of `height` x `width`; all arguments in tokens.

    A map with a side of at most `group_size` is one group, whatever the interval. That is how the
    official dense models treat it.
    """
    if min(height, width) <= group_size:
        rows, columns = _axis_groups(height, height, 1), _axis_groups(width, width, 1)
    else:
        rows = _axis_groups(height, group_size, interval)
        columns = _axis_groups(width, group_size, interval)
    pairs = list(product(rows, columns))
    image = [(r[:, None, :, None] * width + c[None, :, None, :]).flatten() for r, c in pairs]
    # One copy, of one image: the others are the same, further on.
    parts = torch.cat(image).to(device).split([len(part) for part in image])
    starts = torch.arange(batch, device=device)[:, None] * (height * width)
    order = torch.cat([(starts + part).flatten() for part in parts])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=device)
    return Grouping(
        order, inverse, shapes=tuple((r.shape[1], c.shape[1]) for r, c in pairs),
        counts=tuple(r.shape[0] * c.shape[0] for r, c in pairs))


def _axis_groups(size: int, group_size: int, interval: int) -> list[Tensor]:
    """Groups of one axis: an index tensor [groups, positions] for each length that occurs.

    Whole windows give groups of `group_size`. In the rest, the first residues modulo the interval
    have one position more than the others.
    """
    window = group_size * interval
    rest_start = size // window * window
    # `divmod` stops torch.compile where sizes are symbols.
    shorter, num_longer = (size - rest_start) // interval, (size - rest_start) % interval
    whole = torch.arange(0, rest_start, window)[:, None] + torch.arange(interval)
    rest = rest_start + torch.arange(interval)
    kinds = [
        (whole.flatten(), group_size),
        (rest[:num_longer], shorter + 1),
        (rest[num_longer:], shorter),
    ]
    return [
        first[:, None] + torch.arange(length) * interval
        for first, length in kinds
        if len(first) and length
    ]


def _permuted(tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    # A traced model cannot hold functions with a gradient of their own.
    if torch.jit.is_tracing():
        return tokens.index_select(0, order)
    return _Permute.apply(tokens, order, inverse)


class _Permute(torch.autograd.Function):
    """Reorder rows. The gradient is the inverse permutation: a gather, where torch's own backward
    of indexing is a scatter-add."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return tokens.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Permute.apply(grad, inverse, order), None, None
