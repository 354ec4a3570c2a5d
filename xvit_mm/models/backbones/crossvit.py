"""CrossViT (arXiv 2103.14899, ICCV 2021).

Two vision transformers look at the same image, one (S) through small patches of 12 pixels, one
(L), wider and deeper, through patches of 16. Each has its own class token. After every N blocks of
S and M blocks of L the branches exchange information, by default only through their class tokens:
each attends to the patches of the other branch. Three such multi-scale encoders stand in a row.

    image -> S: 240 x 240, patches of 12, N blocks -+           -+
          -> L: 224 x 224, patches of 16, M blocks -+- fusion    +- three times

Outputs and weights agree with the official code (github.com/IBM/CrossViT, Apache-2.0) and timm. The
released weights and the published results belong to images of 240 (408 for the two largest), which
S sees as they are and L reduced to 224 (384). Maps for dense prediction have the strides of the
large patches, so there L sees the image as it is and S sees it enlarged.
Deviations, none of which changes a published result:
- Any image size: the image is padded with zeros on the right and bottom to whole large patches,
  the grids follow it (S has 10 tokens where L has 7, as in 20 x 20 and 14 x 14), and the position
  embeddings are interpolated to them.
- Feature maps at strides 4 to 32 (`BranchPyramid`), which nobody has published.
- The norms before the classifiers belong to the head.

    tokens: [B, 1 + N, C], the class token first
"""
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from xvit_mm.checkpoints import CROSSVIT_NAMES
from xvit_mm.registry import MODELS

from ..layers import (FUSIONS, MLP, NORM_EPS, BranchEmbedding, DropPath, Run, SelfAttention, call,
                      resample_tokens)
from ..layers.cache import is_compiling, sizes_are_symbolic
from ..necks.branch_pyramid import BranchPyramid
from ..settings import (MOST_BLOCKS, TRUNC_NORMAL_INIT, check_choice, check_drop_path_rate,
                        check_numbers, drop_path_rates)
from .base import Backbone, CommonArguments, accepts_common_arguments

# Paper Table 1. Pairs are (S, L); depths are the blocks of one encoder. A dagger is a patch
# embedding of three convolutions. img_size is what L sees of the published 240 (or 408) pixels.
_FIELDS = ('embed_dims', 'depths', 'num_heads', 'mlp_ratio', 'multi_conv', 'img_size')
# yapf: disable
_SHARED = dict(num_encoders=3, patch_sizes=(12, 16), cross_attn_depth=1)
VARIANTS = {name: dict(zip(_FIELDS, row), **_SHARED) for name, row in {
    #                   C          depths  heads  MLP  dagger  size
    'tiny':          ((96, 192),  (1, 4), 3,     4,   False,  224),
    'small':         ((192, 384), (1, 4), 6,     4,   False,  224),
    'base':          ((384, 768), (1, 4), 12,    4,   False,  224),
    '9':             ((128, 256), (1, 3), 4,     3,   False,  224),
    '15':            ((192, 384), (1, 5), 6,     3,   False,  224),
    '18':            ((224, 448), (1, 6), 7,     3,   False,  224),
    '9_dagger':      ((128, 256), (1, 3), 4,     3,   True,   224),
    '15_dagger':     ((192, 384), (1, 5), 6,     3,   True,   224),
    '18_dagger':     ((224, 448), (1, 6), 7,     3,   True,   224),
    '15_dagger_384': ((192, 384), (1, 5), 6,     3,   True,   384),
    '18_dagger_384': ((224, 448), (1, 6), 7,     3,   True,   384),
}.items()}
# yapf: enable

BRANCHES = ('small', 'large')
# Published: S sees 15/14 of the pixels of L, so that both divide their image.
PUBLISHED_GRIDS = {(12, 16): (20, 14)}
NUM_MAPS = 4
OUT_TYPES = ('featmap', 'cls_token')
Grid = tuple[int, int]


class TransformerBlock(nn.Module):
    """Pre-norm transformer block of one branch: tokens [B, 1 + N, C] to the same."""

    def __init__(
        self, embed_dims: int, num_heads: int, *, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=NORM_EPS)
        self.attn = SelfAttention(embed_dims, num_heads)
        self.norm2 = nn.LayerNorm(embed_dims, eps=NORM_EPS)
        self.mlp = MLP(embed_dims, int(embed_dims * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop_path.add(x, self.attn(self.norm1(x)))
        return self.drop_path.add(x, self.mlp(self.norm2(x)))


class MultiScaleEncoder(nn.Module):
    """The blocks of both branches, S first, and the fusion that follows them (paper section 3.2).

    `drop_paths` has a rate for each block of the deeper branch. The other one takes the first
    rates, and the fusion the last. With a `cross_attn_depth` above 1, more fusions follow, each
    with weights of its own and each on the tokens that the one before it gives.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        *,
        num_heads: int,
        mlp_ratio: float,
        drop_paths: Sequence[float],
        fusion: str,
        cross_attn_depth: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                TransformerBlock(width, num_heads, mlp_ratio=mlp_ratio, drop_path=drop_path)
                for drop_path in drop_paths[:depth])
            for width, depth in zip(embed_dims, depths))
        # The first apart from the others: its names are those of published weights.
        self.fusion, *others = (
            FUSIONS[fusion](embed_dims, num_heads, drop_path=drop_paths[-1])
            for _ in range(cross_attn_depth))
        self.more_fusions = nn.ModuleList(others)

    def forward(
        self, tokens: Sequence[Tensor], grids: Sequence[Grid], run: Run = call
    ) -> list[Tensor]:
        """Tokens [B, 1 + N, C] of both branches on their grids to the same."""
        out = list(tokens)
        for branch, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                out[branch] = run(block, out[branch])
        for fusion in (self.fusion, *self.more_fusions):
            out = run(fusion, out, grids)
        return out


@MODELS.register_module()
class CrossViT(Backbone):
    """CrossViT for classification, as published, and for dense prediction.

    Images [B, 3, H, W] of any size to maps [B, C_i, H / stride, W / stride] (rounded up) of strides
    4, 8, 16, 32, or to the class tokens of both branches, [B, C_S] and [B, C_L], before their norm.
    Other large patches than 16 scale the strides: a quarter, half, once and twice their size.

    Args:
        arch: `tiny`, `small`, `base`, `9`, `15`, `18`, `9_dagger`, `15_dagger`, `18_dagger`,
            `15_dagger_384`, `18_dagger_384`, or a dict of what differs from `small`: embed_dims,
            depths, num_heads, mlp_ratio, multi_conv, img_size, num_encoders, patch_sizes (pixels, S
            and L; default 12 and 16), cross_attn_depth (fusions in a row in each encoder; default
            1). With other patch sizes both branches see the image at the same scale.
        out_indices: which of the four maps to return; unused for class tokens.
        out_type: `featmap` or `cls_token`.
        fusion: `cross`, `all`, `class_token` or `pairwise` (paper section 3.3).
        img_size: pixels along a side of the square image whose positions are stored; overrides
            the arch's. Images may have any size, and weights of another one are interpolated.
        image_branch: which branch sees the image as it is. `small`, the default for class tokens
            and only for them: L sees 224 for 240, as the released weights were trained.
            `large`, the default for maps: S sees 240 for 224, as the official module does when it
            is given 224.
        drop_path_rate: of the last block, falling linearly to 0 at the first.
        common: `in_channels`, `frozen_stages`, `norm_eval`, `with_cp`, `init_cfg` of `Backbone`.

    The errors are those of `Backbone`. For `frozen_stages`, stages 1 to 3
    are the encoders and stage 4 is the pyramid.
    """

    variants = VARIANTS
    default_arch = 'small'
    default_init_cfg = TRUNC_NORMAL_INIT
    official_names = CROSSVIT_NAMES

    @accepts_common_arguments
    def __init__(
        self,
        arch: str | Mapping[str, Any] = default_arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        out_type: str = 'featmap',
        fusion: str = 'cross',
        img_size: int | None = None,
        image_branch: str | None = None,
        drop_path_rate: float = 0.1,
        **common: Unpack[CommonArguments],
    ) -> None:
        settings = self.variant(arch)
        settings |= {} if img_size is None else dict(img_size=img_size)
        if image_branch is None:
            image_branch = 'small' if out_type == 'cls_token' else 'large'
        _check_choices(out_type, fusion, image_branch)
        _check_settings(settings, drop_path_rate, is_dense=out_type == 'featmap')
        stages = settings['num_encoders'] + (out_type == 'featmap')
        super().__init__(stages, out_indices, NUM_MAPS, **common)
        self.settings = settings
        self.image_branch = image_branch
        widths = settings['embed_dims']
        self.patch_sizes: tuple[int, int] = tuple(settings['patch_sizes'])
        sides = branch_grids((settings['img_size'],) * 2, 'large', self.patch_sizes)
        self.embeds = nn.ModuleList(
            BranchEmbedding(self.in_channels, width, patch_size=patch_size, grid_side=side,
                            multi_conv=settings['multi_conv'])
            for width, patch_size, (side, _) in zip(widths, self.patch_sizes, sides))
        self.encoders = nn.ModuleList(
            MultiScaleEncoder(widths, settings['depths'], num_heads=settings['num_heads'],
                              mlp_ratio=settings['mlp_ratio'], drop_paths=rates, fusion=fusion,
                              cross_attn_depth=settings['cross_attn_depth'])
            for rates in self._drop_paths(drop_path_rate))
        self.pyramid = None
        self.out_channels, self.out_strides = tuple(widths), ()
        if out_type == 'featmap':
            self.pyramid = BranchPyramid(
                widths, self.out_indices, coarse_stride=self.patch_sizes[1])
            self.out_channels = self.pyramid.out_channels
            self.out_strides = self.pyramid.out_strides
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        size = (x.shape[2], x.shape[3])
        grids = branch_grids(size, self.image_branch, self.patch_sizes)
        x = self._whole_patches(x, grids)
        tokens = [embed(x, grid) for embed, grid in zip(self.embeds, grids)]
        for encoder in self.encoders:
            tokens = encoder(tokens, grids, self._run)
        if self.pyramid is None:
            return tuple(x[:, 0] for x in tokens)
        return self.pyramid(tokens, grids, size)

    def frozen_parts(self, frozen_stages: int) -> list[nn.Module]:
        """`Backbone.frozen_parts`; the stem is the embedding of both branches."""
        return [self.embeds, *[*self.encoders, self.pyramid][:frozen_stages]]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """`Backbone.get_layer_depth`: one layer per block of the deeper branch. The blocks of the
        other one count with its last ones, and a fusion with the block before it."""
        depths = self.settings['depths']
        depth = max(depths)
        num_layers = depth * len(self.encoders) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or not name.startswith(('embeds.', 'encoders.')):
            return num_layers - 1, num_layers
        part, index, *rest = name.split('.')
        if part == 'embeds':
            return 0, num_layers
        layer = depth * (int(index) + 1)
        if rest[0] == 'blocks':
            layer += int(rest[2]) + 1 - depths[int(rest[1])]
        return layer, num_layers

    def fit_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`Backbone.fit_weights`: position embeddings of another size are interpolated."""
        fitted = dict(state_dict)
        for i, embed in enumerate(self.embeds):
            name = f'embeds.{i}.pos_embed'
            if name in fitted:
                fitted[name] = _fit_positions(
                    fitted[name], cast(BranchEmbedding, embed).grid_side)
        return fitted

    def _whole_patches(self, image: Tensor, grids: tuple[Grid, Grid]) -> Tensor:
        branch = BRANCHES.index(self.image_branch)
        patch = self.patch_sizes[branch]
        if is_compiling():
            # Padding that may be zero ties a graph to the size: pad by a patch, then cut.
            image = F.pad(image, (0, patch, 0, patch))
            for axis, n in zip((2, 3), grids[branch]):
                image = image.index_select(axis, torch.arange(n * patch, device=image.device))
            return image
        bottom, right = (n * patch - side for n, side in zip(grids[branch], image.shape[2:]))
        # A traced model pads always: at another size it may have to.
        padded = sizes_are_symbolic() or bottom or right
        return F.pad(image, (0, right, 0, bottom)) if padded else image

    def _drop_paths(self, drop_path_rate: float) -> list[list[float]]:
        depth, encoders = max(self.settings['depths']), self.settings['num_encoders']
        rates = drop_path_rates(drop_path_rate, depth * encoders)
        return [rates[depth * k:depth * (k + 1)] for k in range(encoders)]


def branch_grids(
    size: tuple[int, int], image_branch: str, patch_sizes: tuple[int, int] = (12, 16)
) -> tuple[Grid, Grid]:
    """Grids (height, width) of S and L: (20, 20) and (14, 14), `small` for 240, `large` for 224.

    The branch that sees the image as it is has as many patches as cover it, the other one as many
    as come closest to the published ratio or, for other patch sizes, to the same scale.
    """
    branch = BRANCHES.index(image_branch)
    # Patches along a side, S and L.
    sides = PUBLISHED_GRIDS.get(patch_sizes, patch_sizes[::-1])
    own, other = sides[branch], sides[1 - branch]
    # Whole numbers that are not negative, so that the grids follow the size in a traced model and
    # in one exported to ONNX; at least 1, as own <= 2 * other.
    rows, columns = ((n + patch_sizes[branch] - 1) // patch_sizes[branch] for n in size)
    covering = (rows, columns)
    rounded = ((2 * rows * other + own) // (2 * own), (2 * columns * other + own) // (2 * own))
    return (covering, rounded) if branch == 0 else (rounded, covering)


def _fit_positions(pos_embed: Tensor, grid_side: int) -> Tensor:
    """[1, 1 + n * n, C] to [1, 1 + grid_side ** 2, C]; anything else is left to the caller."""
    side = round((pos_embed.shape[1] - 1)**0.5) if pos_embed.ndim == 3 else 0
    if side < 1 or side**2 != pos_embed.shape[1] - 1:
        return pos_embed
    resampled = resample_tokens(
        pos_embed.float(), (side, side), (grid_side, grid_side), mode='bicubic')
    return resampled.to(pos_embed.dtype)


def _check_choices(out_type: str, fusion: str, image_branch: str) -> None:
    check_choice('out_type', out_type, OUT_TYPES)
    check_choice('fusion', fusion, tuple(FUSIONS))
    check_choice('image_branch', image_branch, BRANCHES)
    if out_type == 'featmap' and image_branch == 'small':
        raise ValueError(
            "image_branch='small' goes with out_type='cls_token': strides of 4 to 32 pixels are "
            'those of the large patches, which need the image as it is')


def _check_settings(
    settings: Mapping[str, Any], drop_path_rate: float, *, is_dense: bool
) -> None:
    # Of the branch of small patches and of that of large ones.
    check_numbers('embed_dims', settings['embed_dims'], count=2)
    check_numbers('depths', settings['depths'], count=2, most=MOST_BLOCKS)
    check_numbers('patch_sizes', settings['patch_sizes'], count=2, most=1024)
    for name in ('num_heads', 'num_encoders', 'cross_attn_depth'):
        check_numbers(name, settings[name], most=MOST_BLOCKS)
    check_numbers('img_size', settings['img_size'], most=16_384)
    check_numbers('mlp_ratio', settings['mlp_ratio'], least=0.1, most=256, whole=False)
    divisors = (settings['num_heads'], 4 if settings['multi_conv'] else 1)
    if any(width % divisor for width in settings['embed_dims'] for divisor in divisors):
        raise ValueError(
            f'embed_dims={settings["embed_dims"]}: num_heads={settings["num_heads"]} must divide '
            'both widths, and so must 4 with multi_conv')
    _check_patch_sizes(settings, is_dense=is_dense)
    check_drop_path_rate(drop_path_rate)


def _check_patch_sizes(settings: Mapping[str, Any], *, is_dense: bool) -> None:
    small, large = given = tuple(settings['patch_sizes'])
    if not small <= large <= 2 * small:
        raise ValueError(
            f'patch_sizes={given}: give the small patches first, and large ones of at most twice '
            'their size')
    if settings['multi_conv'] and given != (12, 16):
        raise ValueError(
            f'patch_sizes={given}: multi_conv has convolutions only for patches of 12 and 16; set '
            'multi_conv=False')
    if is_dense and large % 4:
        raise ValueError(
            f'patch_sizes={given}: the maps have strides of a quarter to twice the large patches, '
            'so 4 must divide them')
