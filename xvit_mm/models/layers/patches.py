"""Tokens in the order of their position in 2 x 2 patches: MobileViT's unfolding and its inverse.

The transformers of MobileViT and XFormer mix tokens that have the same position in their patch. On
a map with an odd side the patches at the border are incomplete, so that some positions have fewer
tokens than others. Nothing is padded or resized: every token of the map is there once.
"""
import torch
from torch import Tensor

PATCH = 2
POSITIONS = tuple((row, column) for row in range(PATCH) for column in range(PATCH))


def unfold(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """[B, C, H, W] to tokens [B, H * W, C], and how many of them each position has.

    The tokens of a position stand together, in the order of their patches, row by row.
    """
    parts = [x[..., p::PATCH, q::PATCH].permute(0, 2, 3, 1).flatten(1, 2) for p, q in POSITIONS]
    return torch.cat(parts, dim=1), tuple(part.shape[1] for part in parts)


def fold(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `unfold`: [B, H * W, C] to [B, C, H, W], channels last in memory."""
    x = tokens.new_empty(tokens.shape[0], height, width, tokens.shape[2])
    sizes = [x[:, p::PATCH, q::PATCH].shape[1:3] for p, q in POSITIONS]
    parts = tokens.split([rows * columns for rows, columns in sizes], dim=1)
    for (p, q), size, part in zip(POSITIONS, sizes, parts):
        x[:, p::PATCH, q::PATCH] = part.unflatten(1, size)
    return x.permute(0, 3, 1, 2)
