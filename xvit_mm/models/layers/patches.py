"""Tokens in the order of their position in 2 x 2 patches: MobileViT's unfolding and its inverse.

The transformers of MobileViT and XFormer mix tokens that have the same position in their patch. On
a map with an odd side the patches at the border are incomplete, so that some positions have fewer
tokens than others. Nothing is padded or resized: every token of the map is there once.
"""
import torch
from torch import Tensor

from .cache import is_compiling, opaque_to_compile

PATCH = 2
POSITIONS = tuple((row, column) for row in range(PATCH) for column in range(PATCH))


def unfold(x: Tensor) -> tuple[Tensor, tuple[int, ...] | Tensor]:
    """[B, C, H, W] to tokens [B, H * W, C], and how many of them each position has.

    The tokens of a position stand together, in the order of their patches, row by row. While
    compiling or exporting, all positions are padded to one length N, [B, 4 * N, C], and the second
    result is a mask [4, N] of the tokens that are not padding: the graph then does not depend on
    which sides are odd.
    """
    if is_compiling():
        order, mask = _padded_order(x.shape[2], x.shape[3], x.device)
        return x.flatten(2).transpose(1, 2).index_select(1, order), mask
    parts = [x[..., p::PATCH, q::PATCH].permute(0, 2, 3, 1).flatten(1, 2) for p, q in POSITIONS]
    return torch.cat(parts, dim=1), tuple(part.shape[1] for part in parts)


def fold(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `unfold`: [B, H * W, C] to [B, C, H, W], channels last in memory."""
    if is_compiling():
        places = _padded_places(height, width, tokens.device)
        tokens = tokens.index_select(1, places)
        x = tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)
        # The convolutions of a graph with frozen weights misread a single image of another layout.
        return x.contiguous()
    x = tokens.new_empty(tokens.shape[0], height, width, tokens.shape[2])
    sizes = [x[:, p::PATCH, q::PATCH].shape[1:3] for p, q in POSITIONS]
    parts = tokens.split([rows * columns for rows, columns in sizes], dim=1)
    for (p, q), size, part in zip(POSITIONS, sizes, parts):
        x[:, p::PATCH, q::PATCH] = part.unflatten(1, size)
    return x.permute(0, 3, 1, 2)


def _padded_length(height: int, width: int) -> int:
    # One more than the longest, because graphs take a length of 1 for a special case.
    return (height + 1) // 2 * ((width + 1) // 2) + 1


def _padded_order(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which token stands at each place [4 * N], and at which places one does [4, N]."""
    place = torch.arange(_padded_length(height, width), device=device)
    orders, masks = [], []
    for p, q in POSITIONS:
        rows, columns = (height + 1 - p) // 2, (width + 1 - q) // 2
        masks.append(place < rows * columns)
        columns = torch.sym_max(columns, 1)
        row = place // columns
        # Without a remainder, which the new exporter to ONNX has not for computed numbers.
        order = (row * 2 + p) * width + (place - row * columns) * 2 + q
        orders.append(torch.where(masks[-1], order, 0))
    return torch.cat(orders), torch.stack(masks)


def _order_shapes(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    length = _padded_length(height, width)
    return (torch.empty(len(POSITIONS) * length, dtype=torch.int64, device=device),
            torch.empty(len(POSITIONS), length, dtype=torch.bool, device=device))


def _padded_places(height: int, width: int, device: torch.device) -> Tensor:
    """The place of each token of the map, [H * W]."""
    row = torch.arange(height, device=device)[:, None]
    column = torch.arange(width, device=device)
    position = row % 2 * 2 + column % 2
    within = row // 2 * ((width + 1 - column % 2) // 2) + column // 2
    return (position * _padded_length(height, width) + within).flatten()


def _places_shape(height: int, width: int, device: torch.device) -> Tensor:
    return torch.empty(height * width, dtype=torch.int64, device=device)


_padded_order = opaque_to_compile(_padded_order, _order_shapes)
_padded_places = opaque_to_compile(_padded_places, _places_shape)
