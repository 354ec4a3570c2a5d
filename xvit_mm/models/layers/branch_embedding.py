"""Patches, class token and positions of a branch of CrossViT (arXiv 2103.14899)."""
import torch
from torch import Tensor, nn

from .cache import EvalCache, sizes_are_symbolic
from .resample import interpolate, resample_tokens

Grid = tuple[int, int]
# Of the dagger's three convolutions: stride and padding of the second, stride of the third.
MULTI_CONV_STRIDES = {12: (3, 0, 1), 16: (2, 1, 2)}


def patch_embedding(
    in_channels: int, embed_dims: int, *, patch_size: int, multi_conv: bool
) -> nn.Module:
    """[B, in_channels, n * patch, m * patch] to [B, embed_dims, n, m]."""
    if not multi_conv:
        return nn.Conv2d(in_channels, embed_dims, patch_size, stride=patch_size)
    quarter, half = embed_dims // 4, embed_dims // 2
    stride, padding, last_stride = MULTI_CONV_STRIDES[patch_size]
    return nn.Sequential(
        nn.Conv2d(in_channels, quarter, 7, stride=4, padding=3),
        nn.ReLU(inplace=True),
        nn.Conv2d(quarter, half, 3, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, embed_dims, 3, stride=last_stride, padding=1))


class BranchEmbedding(EvalCache):
    """The beginning of a branch: patches, class token and positions.

    An image [B, 3, H, W], resized (bicubic) so that its patches make up `grid` = (h, w), to tokens
    [B, 1 + h * w, C]. The position embeddings are stored for a grid of `grid_side` x `grid_side`.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        *,
        patch_size: int,
        multi_conv: bool,
        grid_side: int,
    ) -> None:
        super().__init__()
        self.patch_size, self.grid_side = patch_size, grid_side
        self.proj = patch_embedding(
            in_channels, embed_dims, patch_size=patch_size, multi_conv=multi_conv)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid_side**2, embed_dims))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, image: Tensor, grid: Grid) -> Tensor:
        size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        # A traced model resizes always: at another size it may have to.
        if sizes_are_symbolic() or image.shape[2:] != size:
            image = interpolate(image, size, 'bicubic')
        patches = self.proj(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return tokens + self.cached(
            grid, lambda: self._positions(grid), weights=(self.pos_embed,))

    def _positions(self, grid: Grid) -> Tensor:
        stored = (self.grid_side, self.grid_side)
        return resample_tokens(self.pos_embed, stored, grid, mode='bicubic')
