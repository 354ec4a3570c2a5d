"""A pyramid of maps from the two token grids of CrossViT: this package's design, unpublished."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import NORM_EPS
from ..layers.cache import is_compiling, is_exporting
from ..layers.resample import interpolate


class PyramidLevel(nn.Module):
    """One map of the pyramid: both branches, each projected and resampled to its grid, summed.

    Maps [B, C_i, h_i, w_i], the second at `coarse_stride` and both over the same area, to
    [B, out_channels, ceil(H / stride), ceil(W / stride)] for an image of H x W. Below that stride
    the projection also learns what lies inside a token, two by two; above it a strided convolution
    follows.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, *, stride: int, coarse_stride: int
    ) -> None:
        super().__init__()
        self.stride, self.cells = stride, max(coarse_stride // stride, 1)
        self.projs = nn.ModuleList(
            nn.ConvTranspose2d(channels, out_channels, 2, stride=2) if stride < coarse_stride
            else nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.reduce = (nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
                       if stride > coarse_stride else nn.Identity())

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        rows, columns = (n * self.cells for n in maps[1].shape[2:])
        x = sum(interpolate(proj(x), (rows, columns), 'bilinear')
                for proj, x in zip(self.projs, maps))
        height, width = ((n + self.stride - 1) // self.stride for n in size)
        x = self.reduce(x)
        if is_compiling() and not is_exporting():
            # A slice would tie the graph to the sizes at which it leaves out nothing.
            for axis, n in ((2, height), (3, width)):
                x = x.index_select(axis, torch.arange(n, device=x.device))
            return x.contiguous()
        return x[..., :height, :width].contiguous()


class BranchPyramid(nn.Module):
    """Maps at strides 4, 8, 16 and 32, or some of them, from the tokens of two branches.

    Tokens, small patches first, [B, 1 + h_i * w_i, C_i] with the class token in front, where the
    large patches lie at `coarse_stride`, 4 times the finest stride. The class token, through which
    the branches exchange information, is projected and added at every place (the readout of DPT,
    arXiv 2103.13413, in its additive form). The fine maps are as wide as the small branch, the
    coarse ones as the large one.
    """

    def __init__(
        self, embed_dims: Sequence[int], out_indices: Sequence[int], *, coarse_stride: int = 16
    ) -> None:
        super().__init__()
        strides = tuple(coarse_stride * factor // 4 for factor in (1, 2, 4, 8))
        small, large = embed_dims
        widths = (small, small, large, large)
        self.out_channels = tuple(widths[i] for i in out_indices)
        self.out_strides = tuple(strides[i] for i in out_indices)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for width in embed_dims)
        self.readouts = nn.ModuleList(nn.Linear(width, width) for width in embed_dims)
        self.levels = nn.ModuleDict({
            f'stride{stride}': PyramidLevel(
                embed_dims, channels, stride=stride, coarse_stride=coarse_stride)
            for stride, channels in zip(self.out_strides, self.out_channels)})

    def forward(
        self,
        tokens: Sequence[Tensor],
        grids: Sequence[tuple[int, int]],
        size: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        """The maps of an image of `size` (height, width)."""
        maps = [self._map(*branch) for branch in zip(self.norms, self.readouts, tokens, grids)]
        return tuple(level(maps, size) for level in self.levels.values())

    @staticmethod
    def _map(norm: nn.Module, readout: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = norm(tokens)
        x = (tokens[:, 1:] + readout(tokens[:, :1])).transpose(1, 2)
        # Not unflatten, whose sizes would be constants of an ONNX model.
        x = x.reshape(*x.shape[:2], *grid)
        if is_compiling() and not torch.is_grad_enabled():
            # The convolutions of a graph with frozen weights misread one image of another layout.
            x = x.contiguous()
        return x
