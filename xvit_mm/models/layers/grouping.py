"""Which tokens attend to each other: CrossFormer's short- and long-distance groups.

Both kinds split the rows and the columns of a map into groups; a 2-D group is a group of rows
crossed with a group of columns. With group size G and interval I an axis is cut into windows of
G * I positions, and positions of a window that are equal modulo I form a group: I = 1 gives G
neighbours (short distance), I > 1 gives G positions that lie I apart (long distance).

The papers pad a map that G * I does not divide and mask the padding. A masked key has no weight and
the output of a padded query is dropped, so there are several ways to the same result:

    groups of each shape on their own       up to 9 attention calls; no padding      CPU
    whole groups, then padded border groups 2 attention calls; padded border         GPU
    all groups padded, sizes symbolic       1 attention call; everything masked      export, compile

A CPU pays for every padded query, a GPU for every call, and a compiled or exported graph must not
depend on which shapes a size happens to give. A model that is compiled for inference on a CPU does
as one that is not: its graph holds attention as one operation and does not look into it.
"""
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .attention import attend, attends_fused, split_heads
from .cache import SizeCache, is_compiling, is_exporting, opaque_to_compile, sizes_are_symbolic

# Added to the logits of padded keys: exp() of it is zero, and float16 can hold it.
MASKED = -3e4
# A map of 200 x 336 tokens has two groupings of 0.5 MB each, and smaller ones in later stages.
CACHE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Part:
    """Groups of one shape: `count` per image, of `tokens` tokens each.

    mask: [count, 1, 1, tokens], zero for tokens and `MASKED` for padding; None without padding.
    """

    count: int
    tokens: int
    mask: Tensor | None = None


@dataclass(frozen=True)
class Grouping:
    """The groups of a map, as an order of its H * W tokens in which every group is contiguous.

    order: [T] the token at each place; T > H * W with padding, which repeats tokens of the border.
    inverse: [H * W] the place of each token.
    parts: the shapes of the groups; groups of one shape stand together.
    sides: tokens along the height and width of a whole group.
    offsets: [D, 2] rows and columns between any two tokens of a group, as floats; they follow from
        `sides`.
    pairs: [sum of tokens**2 over parts] which offset each pair of tokens has.
    """

    order: Tensor
    inverse: Tensor
    parts: tuple[Part, ...]
    sides: tuple[int, int]
    offsets: Tensor
    pairs: Tensor

    def gather(self, tokens: Tensor) -> Tensor:
        """[B, H * W, C] in map order to [B, T, C] in group order."""
        # Padded tokens get no gradient: they have no weight as keys, and scatter drops the queries.
        return _select(tokens, self.order, self.inverse)

    def scatter(self, tokens: Tensor) -> Tensor:
        """[B, T, C] in group order to [B, H * W, C] in map order."""
        return _select(tokens, self.inverse, None if self.padded else self.order)

    def split(self, tokens: Tensor, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Group by group: [B, T, C] and biases [heads, len(self.pairs)] to, for each part,
        [B * count, tokens, C] and [1 or B * count, heads, tokens, tokens]."""
        batch = tokens.shape[0]
        chunks = tokens.split([p.count * p.tokens for p in self.parts], dim=1)
        biases = pairs.split([p.tokens**2 for p in self.parts], dim=1)
        for part, chunk, bias in zip(self.parts, chunks, biases):
            bias = bias.reshape(1, -1, part.tokens, part.tokens)
            if part.mask is not None:
                bias = bias + part.mask.to(bias.dtype).repeat(batch, 1, 1, 1)
            yield chunk.reshape(batch * part.count, part.tokens, chunk.shape[2]), bias

    def pair_biases(self, tables: Tensor) -> Tensor:
        """[blocks, heads, D], the biases of `offsets`, to what `attend` takes of each block: the
        biases of `pairs`, [blocks, heads, len(pairs)]."""
        return tables[:, :, self.pairs]

    def attend(self, qkv: Tensor, bias: Tensor, num_heads: int) -> Tensor:
        """Attention within the groups: [B, T, 3 C] in group order to [B, T, C]."""
        # No -1 in these shapes, which would be ambiguous for an empty batch.
        parts = [_attend(chunk, chunk_bias, num_heads).reshape(
                     qkv.shape[0], part.count * part.tokens, qkv.shape[2] // 3)
                 for part, (chunk, chunk_bias) in zip(self.parts, self.split(qkv, bias))]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    @property
    def padded(self) -> bool:
        return any(part.mask is not None for part in self.parts)

    @property
    def nbytes(self) -> int:
        masks = [part.mask for part in self.parts if part.mask is not None]
        tensors = [self.order, self.inverse, self.offsets, self.pairs, *masks]
        return sum(t.numel() * t.element_size() for t in tensors)


def group_tokens(
    height: int, width: int, group_size: int, interval: int, device: torch.device
) -> Grouping:
    """Group the tokens of a map of `height` x `width`; all arguments in tokens.

    A map with a side of at most `group_size` is one group, whatever the interval. That is how the
    official dense models treat it.
    """
    arguments = height, width, group_size, interval, device
    if sizes_are_symbolic():
        compiles = is_compiling() and not is_exporting()
        opaque = compiles and not torch.is_grad_enabled() and not calls_are_dear(device)
        return _group_opaquely(*arguments) if opaque else _group_padded(*arguments)
    return _group_once(*arguments)


_groupings: SizeCache[Grouping] = SizeCache(CACHE_BYTES)


def _group_once(*arguments: Any) -> Grouping:
    return _groupings.get(arguments, lambda: _group_exactly(*arguments))


def _group_exactly(
    height: int, width: int, group_size: int, interval: int, device: torch.device
) -> Grouping:
    sides = group_size, group_size
    if min(height, width) <= group_size:
        sides, interval = (height, width), 1
    rows = _axis_groups(height, sides[0], interval)
    columns = _axis_groups(width, sides[1], interval)
    # One index tensor [groups, height, width] for each shape, whole groups first.
    shapes = [(r[:, None, :, None] * width + c[None, :, None, :]).flatten(0, 1)
              for r, c in product(rows, columns)]
    if calls_are_dear(device):
        shapes = [*shapes[:1], *_padded_to_one_shape(shapes[1:])]
    order = torch.cat([index.flatten() for index in shapes])
    places = (order >= 0).nonzero().flatten()
    inverse = torch.empty(height * width, dtype=torch.int64)
    inverse[order[places]] = places
    parts = tuple(Part(len(index), index[0].numel(), _mask(index, device)) for index in shapes)
    pairs = torch.cat([_pair_offsets(index.shape[1], index.shape[2], sides) for index in shapes])
    return Grouping(
        order.clamp(min=0).int().to(device), inverse.int().to(device), parts, sides,
        _offsets(*sides, device), pairs.int().to(device))


def calls_are_dear(device: torch.device) -> bool:
    """Whether an attention call costs more than the padding that saves it."""
    return device.type not in ('cpu', 'meta')


def _axis_groups(size: int, group_size: int, interval: int) -> list[Tensor]:
    """Groups of one axis: an index tensor [groups, positions] for each length that occurs.

    Whole windows give groups of `group_size`. In the rest, the first residues modulo the interval
    have one position more than the others.
    """
    window = group_size * interval
    rest_start = size // window * window
    shorter, num_longer = divmod(size - rest_start, interval)
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


def _padded_to_one_shape(shapes: list[Tensor]) -> list[Tensor]:
    """Index tensors [groups, height, width] to at most one of the largest height and width, with
    -1 for padding."""
    if not shapes:
        return []
    height, width = (max(index.shape[axis] for index in shapes) for axis in (1, 2))
    return [torch.cat([
        F.pad(index, (0, width - index.shape[2], 0, height - index.shape[1]), value=-1)
        for index in shapes])]


def _mask(index: Tensor, device: torch.device) -> Tensor | None:
    """The `Part.mask` of groups [groups, height, width] that hold -1 for padding."""
    if index.min() >= 0:
        return None
    return torch.where(index.flatten(1) < 0, MASKED, 0.)[:, None, None].to(device)


def _offsets(height: int, width: int, device: torch.device) -> Tensor:
    """All offsets (rows, columns) within a group of `height` x `width`, row by row."""
    number = torch.arange((2 * height - 1) * (2 * width - 1), device=device)
    rows, columns = number // (2 * width - 1), _remainder(number, 2 * width - 1)
    return torch.stack([rows - (height - 1), columns - (width - 1)], dim=1).float()


def _pair_offsets(
    height: int, width: int, sides: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """For each pair of tokens of a group of `height` x `width`, which of the `_offsets(*sides)`
    leads from the second to the first."""
    position = torch.arange(height * width, device=device)
    rows, columns = position // width, _remainder(position, width)
    rows = rows[:, None] - rows + (sides[0] - 1)
    columns = columns[:, None] - columns + (sides[1] - 1)
    return (rows * (2 * sides[1] - 1) + columns).flatten()


@dataclass(frozen=True)
class OpaqueGrouping(Grouping):
    """A grouping without padding in a graph whose sizes are symbolic; attention has no gradient.

    Its `parts` and `pairs`, which are empty here, are known only when the graph is run.

    sizes: height, width, group size and interval, the arguments of `group_tokens`.
    """

    sizes: tuple[int, int, int, int]

    def pair_biases(self, tables: Tensor) -> Tensor:
        """As they are: `attend` takes the biases of `offsets`, [heads, D]."""
        return tables

    def attend(self, qkv: Tensor, bias: Tensor, num_heads: int) -> Tensor:
        return _attend_in_groups(qkv, bias, *self.sizes, num_heads)


def _group_opaquely(
    height: int, width: int, group_size: int, interval: int, device: torch.device
) -> OpaqueGrouping:
    sizes = height, width, group_size, interval
    order, inverse, offsets = _exact_tables(*sizes, device)
    sides, _ = _symbolic_group(*sizes)
    return OpaqueGrouping(order, inverse, (), sides, offsets, order[:0], sizes)


def _exact_tables(
    height: int, width: int, group_size: int, interval: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Order, inverse and offsets of the `Grouping` of known sizes."""
    grouping = _group_once(height, width, group_size, interval, device)
    # Copies, for a graph may write its own results where it does not need them any more.
    return grouping.order.clone(), grouping.inverse.clone(), grouping.offsets.clone()


def _exact_shapes(
    height: int, width: int, group_size: int, interval: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    (rows, columns), _ = _symbolic_group(height, width, group_size, interval)
    indices = partial(torch.empty, height * width, dtype=torch.int32, device=device)
    number = (2 * rows - 1) * (2 * columns - 1)
    return indices(), indices(), torch.empty(number, 2, device=device)


def _attend_in_groups(
    qkv: Tensor, bias: Tensor, height: int, width: int, group_size: int, interval: int,
    num_heads: int
) -> Tensor:
    """`Grouping.attend` for a map of `height` x `width`; bias: [heads, D], of `offsets`."""
    grouping = _group_once(height, width, group_size, interval, qkv.device)
    return grouping.attend(qkv, grouping.pair_biases(bias[None])[0], num_heads)


def _attended_shape(qkv: Tensor, *others: Any) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


_exact_tables = opaque_to_compile(_exact_tables, _exact_shapes)
_attend_in_groups = opaque_to_compile(_attend_in_groups, _attended_shape)


def _group_padded(
    height: int, width: int, group_size: int, interval: int, device: torch.device
) -> Grouping:
    """The same groups, all of them padded to one shape, by formulas that hold for symbolic sizes."""
    sides, interval = _symbolic_group(height, width, group_size, interval)
    order, inverse, mask, offsets, pairs = _padded_tables(height, width, *sides, interval, device)
    part = Part(mask.shape[0], sides[0] * sides[1], mask)
    return Grouping(order, inverse, (part,), sides, offsets, pairs)


def _padded_tables(
    height: int, width: int, rows: int, columns: int, interval: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Order, inverse, mask, offsets and pairs of a `Grouping` of padded groups of one shape."""
    row_groups, row_places = _padded_axis(height, rows, interval, device)
    column_groups, column_places = _padded_axis(width, columns, interval, device)
    y, x = row_groups[:, None, :, None], column_groups[None, :, None, :]
    order = y.clamp(max=height - 1) * width + x.clamp(max=width - 1)
    real = (y < height) & (x < width)
    count, tokens = row_groups.shape[0] * column_groups.shape[0], rows * columns
    mask = torch.where(real, 0., MASKED).reshape(count, 1, 1, tokens)
    # A token's place: first by its group, then by its position within the group.
    (row_group, row), (column_group, column) = row_places, column_places
    group = row_group[:, None] * column_groups.shape[0] + column_group
    inverse = group * tokens + row[:, None] * columns + column
    return (order.flatten(), inverse.flatten(), mask, _offsets(rows, columns, device),
            _pair_offsets(rows, columns, (rows, columns), device))


def _table_shapes(
    height: int, width: int, rows: int, columns: int, interval: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    count = (_number_of_groups(height, rows, interval)
             * _number_of_groups(width, columns, interval))
    tokens = rows * columns
    indices = partial(torch.empty, dtype=torch.int64, device=device)
    floats = partial(torch.empty, device=device)
    return (indices(count * tokens), indices(height * width), floats(count, 1, 1, tokens),
            floats((2 * rows - 1) * (2 * columns - 1), 2), indices(tokens**2))


def _symbolic_group(
    height: Any, width: Any, group_size: int, interval: int
) -> tuple[tuple[int, int], int]:
    """Height and width of the groups of a map, and the interval between their tokens."""
    if not (torch.jit.is_tracing() or is_exporting()):
        # torch.compile notes which branch it was, and compiles again for the other one.
        is_one = torch.sym_min(height, width) <= group_size
        return ((height, width), 1) if is_one else ((group_size, group_size), interval)
    # The file must hold for both: they are values that it computes, of which nothing is known.
    if not torch.jit.is_tracing():
        height, width = (torch.scalar_tensor(n, dtype=torch.int64) for n in (height, width))
    small = torch.minimum(height, width) <= group_size
    rows, columns = (_computed_size(torch.where(small, size, group_size))
                     for size in (height, width))
    return (rows, columns), _computed_size(torch.where(small, 1, interval))


def _computed_size(size: Any) -> int:
    if torch.jit.is_tracing():
        return size  # whose sizes are tensors anyway
    number = size.item()
    torch._check(number >= 1)
    return number


def _padded_axis(
    size: int, group_size: int, interval: int, device: torch.device
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Groups of one axis [groups, group_size], with positions of `size` and more for padding; and
    for each position of the axis its group and where it stands there."""
    window = group_size * interval
    group = torch.arange(_number_of_groups(size, group_size, interval), device=device)[:, None]
    member = torch.arange(group_size, device=device)
    groups = group // interval * window + _remainder(group, interval) + member * interval
    position = torch.arange(size, device=device)
    places = (position // window * interval + _remainder(position, interval),
              _remainder(position, window) // interval)
    return groups, places


def _number_of_groups(size: int, group_size: int, interval: int) -> int:
    """How many padded groups an axis has."""
    window = group_size * interval
    return (size + window - 1) // window * interval


_padded_tables = opaque_to_compile(_padded_tables, _table_shapes)


def _remainder(x: Tensor, divisor: int) -> Tensor:
    # The new exporter to ONNX has no remainder by a number that the graph computes.
    return x - x // divisor * divisor


def _attend(qkv: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """qkv [groups, N, 3 C] and bias [1 or groups, heads, N, N] to [groups, N, C]."""
    query, key, value = split_heads(qkv, num_heads, copy=not attends_fused(bias))
    return rearrange(attend(query, key, value, bias), 'g h n d -> g n (h d)')


def _select(tokens: Tensor, index: Tensor, inverse: Tensor | None) -> Tensor:
    """tokens[:, index]; `inverse`: the index that gathers its gradient."""
    if inverse is None or sizes_are_symbolic():
        return tokens.index_select(1, index)
    return _Select.apply(tokens, index, inverse)


class _Select(torch.autograd.Function):
    """Select tokens. The gradient is selected as well, where torch's own is a scatter-add."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return tokens.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(1, ctx.inverse), None, None
