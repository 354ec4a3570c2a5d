"""CrossFormer (arXiv 2108.00154, ICLR 2022) and CrossFormer++ (arXiv 2303.06908, TPAMI 2023).

A pyramid of four stages. A stage is a cross-scale embedding layer (CEL), which sees every position
with kernels of several sizes, and blocks that alternate short-distance attention (SDA, among
neighbours) with long-distance attention (LDA, among tokens at an interval). Both get a dynamic
position bias (DPB): a small network from the offset of two tokens to a bias, so that any group
size works with the same weights. CrossFormer++ uses groups that grow with depth and puts an
activation cooling layer (ACL) after every third block.

Outputs and weights agree with the official code (github.com/cheerss/CrossFormer, MIT).
Deviations, none of which changes a published result:
- Any input size: a map that a stride does not divide is padded with zeros on the right and bottom
  (the official code stops). On a CPU groups at the border are smaller, not padded and masked.
- Whether a small map is one group is decided on every call, not once for good.

    embedding -> [SDA block, LDA block, ...] -> embedding -> ...     x: [B, H, W, C] throughout
"""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Unpack

from xvit_mm.checkpoints import CROSSFORMER_NAMES
from xvit_mm.registry import MODELS

from ..layers import (MLP, DropPath, DynamicPositionBias, EvalCache, Grouping, Run, apply_linear,
                      call, group_tokens, position_biases)
from ..layers.cache import sizes_are_symbolic
from ..layers.plain import is_plain
from ..settings import (MOST_BLOCKS, TRUNC_NORMAL_INIT, check_drop_path_rate, check_numbers,
                        drop_path_rates)
from .base import Backbone, CommonArguments, accepts_common_arguments

# CrossFormer Table 1, CrossFormer++ Table 2. Group sizes and intervals are those for
# classification at 224; the dense CrossFormer++ models use 7 and (8, 4, 2, 1) as well.
MOST_TOKENS = 1024  # along a group or between its tokens: 4096 pixels
_FIELDS = ('embed_dims', 'depths', 'num_heads', 'group_size', 'interval', 'cooling',
           'drop_path_rate')
_7, _4_4_14_7 = (7, 7, 7, 7), (4, 4, 14, 7)
_8421, _4211 = (8, 4, 2, 1), (4, 2, 1, 1)
STEM_KERNELS, STEM_STRIDE = (4, 8, 16, 32), 4
MERGE_KERNELS, MERGE_STRIDE = (2, 4), 2


def default_kernels(stages: int) -> tuple[tuple[int, ...], ...]:
    """The published kernel sizes of the embedding of each stage."""
    return (STEM_KERNELS, *[MERGE_KERNELS] * (stages - 1))


# yapf: disable
_SHARED = dict(kernel_sizes=default_kernels(4))
VARIANTS = {name: dict(zip(_FIELDS, row), **_SHARED) for name, row in {
    #        C    depths         heads           G           I      ACL    drop path
    't':    (64,  (1, 1, 8, 6),  (2, 4, 8, 16),  _7,         _8421, False, 0.1),
    's':    (96,  (2, 2, 6, 2),  (3, 6, 12, 24), _7,         _8421, False, 0.2),
    'b':    (96,  (2, 2, 18, 2), (3, 6, 12, 24), _7,         _8421, False, 0.3),
    'l':    (128, (2, 2, 18, 2), (4, 8, 16, 32), _7,         _8421, False, 0.5),
    'pp_s': (64,  (2, 2, 18, 2), (2, 4, 8, 16),  _4_4_14_7,  _4211, True,  0.2),
    'pp_b': (96,  (2, 2, 18, 2), (3, 6, 12, 24), _4_4_14_7,  _4211, True,  0.3),
    'pp_l': (128, (2, 2, 18, 2), (4, 8, 16, 32), _4_4_14_7,  _4211, True,  0.5),
    'pp_h': (128, (6, 6, 18, 2), (4, 8, 16, 32), _4_4_14_7,  _4211, True,  0.5),
}.items()}
# yapf: enable

MLP_RATIO = 4


class CrossScaleEmbedding(nn.Module):
    """Convolutions of several kernel sizes and one stride, concatenated (CEL, paper section 3.1).

    [B, H, W, C_in] to [B, ceil(H / stride), ceil(W / stride), C_out]. Kernel i of n gives
    C_out / 2^(i+1) channels and the last one as many as the one before it: large kernels cost
    more, so they get fewer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernels: Sequence[int], stride: int
    ) -> None:
        super().__init__()
        self.stride = stride
        shares = [min(i + 1, len(kernels) - 1) for i in range(len(kernels))]
        self.projs = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels // 2**share, kernel, stride, (kernel - stride) // 2)
            for kernel, share in zip(kernels, shares))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        bottom, right = -x.shape[2] % self.stride, -x.shape[3] % self.stride
        if sizes_are_symbolic():
            # More than needed makes no further output, and does not tie a graph to the size.
            bottom = right = self.stride - 1
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return torch.cat([_convolve(proj, x).permute(0, 2, 3, 1) for proj in self.projs], dim=-1)


def _convolve(conv: Any, x: Tensor) -> Tensor:
    """`conv(x)` for a map that its stride divides.

    For the weights of kernels that are much wider than their stride, oneDNN has no fast gradient:
    that of the 32 x 32 kernel takes 3 times as long as over patches of stride x stride pixels
    (channels last 100 times), whose pixels count as channels.
    """
    if not is_plain(conv, nn.Conv2d):
        return conv(x)
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    trains = torch.is_grad_enabled() and conv.weight.requires_grad and x.device.type == 'cpu'
    # torch does not unshuffle an empty batch.
    if (not trains or kernel < 4 * stride or kernel % stride or sizes_are_symbolic()
            or not x.shape[0]):
        return conv(x)
    patches = F.pixel_unshuffle(F.pad(x, conv.padding * 2), stride)
    return F.conv2d(patches, F.pixel_unshuffle(conv.weight, stride), conv.bias)


class GroupedAttention(nn.Module):
    """Multi-head attention within groups of tokens, with DPB (paper eq. 3).

    [B, H, W, C] or [B, H * W, C] to the same. The grouping alone decides whether it is SDA or LDA;
    `bias` is the position bias of this block, from `Grouping.pair_biases`.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_bias = DynamicPositionBias(embed_dims, num_heads)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor, grouping: Grouping, bias: Tensor) -> Tensor:
        tokens = x.flatten(1, -2)
        # Without padding there is less to gather before the projection: 1.04 x per training step.
        qkv = (grouping.gather(apply_linear(self.qkv, tokens)) if grouping.padded else
               apply_linear(self.qkv, grouping.gather(tokens)))
        out = grouping.attend(qkv, bias, self.num_heads)
        return apply_linear(self.proj, grouping.scatter(out)).view(x.shape)


class ActivationCooling(nn.Module):
    """Depth-wise 3 x 3 convolution and LayerNorm in place of the activations (ACL, ++ section 3.3).

    [B, H, W, C] to the same, without a residual path: it stops the growth of the activations.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class CrossFormerBlock(nn.Module):
    """Pre-norm transformer block over grouped tokens: [B, H, W, C] to the same."""

    def __init__(
        self, embed_dims: int, num_heads: int, *, drop_path: float, cooling: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = GroupedAttention(embed_dims, num_heads)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = MLP(embed_dims, MLP_RATIO * embed_dims)
        self.drop_path = DropPath(drop_path)
        self.cooling = ActivationCooling(embed_dims) if cooling else nn.Identity()

    def forward(self, x: Tensor, grouping: Grouping, bias: Tensor) -> Tensor:
        # As a map, tokens would make compiled layers divide each index by symbolic sizes.
        tokens = x.flatten(1, 2)
        tokens = self.drop_path.add(tokens, self.attn(self.norm1(tokens), grouping, bias))
        tokens = self.drop_path.add(tokens, self.mlp(self.norm2(tokens)))
        return self.cooling(tokens.view(x.shape))


class CrossFormerStage(EvalCache):
    """An embedding and its blocks: [B, H, W, C_in] to [B, ceil(H / s), ceil(W / s), C].

    Even blocks attend at short distance, odd ones at long distance. The stem is followed by a
    LayerNorm; later embeddings have theirs in front.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        *,
        stem: bool,
        num_heads: int,
        group_size: int,
        interval: int,
        drop_paths: Sequence[float],
        cooling: bool,
        kernels: Sequence[int],
    ) -> None:
        super().__init__()
        self.group_size, self.interval = group_size, interval
        stride = STEM_STRIDE if stem else MERGE_STRIDE
        self.pre_norm = nn.Identity() if stem else nn.LayerNorm(in_channels)
        self.embed = CrossScaleEmbedding(in_channels, embed_dims, kernels=kernels, stride=stride)
        self.post_norm = nn.LayerNorm(embed_dims) if stem else nn.Identity()
        last = len(drop_paths) - 1
        self.blocks = nn.ModuleList(
            CrossFormerBlock(embed_dims, num_heads, drop_path=drop_path,
                             cooling=cooling and (i + 1) % 3 == 0 and i < last)
            for i, drop_path in enumerate(drop_paths))

    def forward(self, x: Tensor, run: Run = call) -> Tensor:
        x = self.post_norm(self.embed(self.pre_norm(x)))
        groupings = [group_tokens(x.shape[1], x.shape[2], self.group_size, interval, x.device)
                     for interval in (1, self.interval)]
        biases = self._position_biases(groupings)
        for i, (block, bias) in enumerate(zip(self.blocks, biases)):
            x = run(block, x, groupings[i % 2], bias)
        return x

    def _position_biases(self, groupings: Sequence[Grouping]) -> list[Tensor]:
        """`Grouping.pair_biases` of each block."""
        blocks: list[Any] = list(self.blocks)
        # Those at short distance first, for they share a grouping, then those at long distance.
        modules: list[DynamicPositionBias] = [
            block.attn.position_bias for block in (*blocks[0::2], *blocks[1::2])]
        # Both groupings have the same offsets, and so have all maps larger than a group.
        sides, offsets = groupings[0].sides, groupings[0].offsets
        table = self.cached(
            sides, lambda: position_biases(modules, offsets).transpose(1, 2),
            weights=(p for module in modules for p in module.parameters()))
        # Exporters cannot write an empty part: the single block of a stage is at short distance.
        parts = table.split((len(blocks) + 1) // 2)
        biases = [grouping.pair_biases(part).unbind() for grouping, part in zip(groupings, parts)]
        return [biases[i % 2][i // 2] for i in range(len(blocks))]


@MODELS.register_module()
class CrossFormer(Backbone):
    """CrossFormer and CrossFormer++ for dense prediction and classification.

    Images [B, 3, H, W] of any size to maps [B, C_i, H / stride, W / stride] (rounded up) of
    strides 4, 8, 16, 32, as they leave the last block of their stage, without a norm.

    Args:
        arch: `t`, `s`, `b`, `l` (CrossFormer), `pp_s`, `pp_b`, `pp_l`, `pp_h` (CrossFormer++), or
            a dict of what differs from `s`: embed_dims, depths, num_heads, group_size, interval,
            cooling, drop_path_rate, kernel_sizes (of the embedding of each stage; default
            4, 8, 16, 32 in the first and 2, 4 in the others).
        group_size: tokens along a side of a group, one value per stage; overrides the arch's.
        interval: distance of the tokens of an LDA group, one per stage; overrides the arch's.
        drop_path_rate: of the last block, falling linearly to 0 at the first; default the arch's.
        common: `in_channels`, `frozen_stages`, `norm_eval`, `with_cp`, `init_cfg` of `Backbone`.

    The errors are those of `Backbone`.
    """

    variants = VARIANTS
    default_arch = 's'
    default_init_cfg = TRUNC_NORMAL_INIT
    official_names = CROSSFORMER_NAMES

    @accepts_common_arguments
    def __init__(
        self,
        arch: str | Mapping[str, Any] = default_arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        group_size: Sequence[int] | None = None,
        interval: Sequence[int] | None = None,
        drop_path_rate: float | None = None,
        **common: Unpack[CommonArguments],
    ) -> None:
        settings = self.variant(arch)
        check_numbers('depths', settings['depths'], count=0, most=MOST_BLOCKS)
        if isinstance(arch, Mapping) and 'kernel_sizes' not in arch:
            settings['kernel_sizes'] = default_kernels(len(settings['depths']))
        overrides = dict(group_size=group_size, interval=interval, drop_path_rate=drop_path_rate)
        settings |= {key: value for key, value in overrides.items() if value is not None}
        _check_settings(settings)
        super().__init__(len(settings['depths']), out_indices, **common)
        self.settings = settings
        channels = [settings['embed_dims'] * 2**i for i in range(self.num_stages)]
        self.stages = nn.ModuleList(
            CrossFormerStage(source, width, stem=i == 0, **self._stage_settings(i))
            for i, (source, width) in enumerate(zip([self.in_channels, *channels], channels)))
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(STEM_STRIDE * MERGE_STRIDE**i for i in self.out_indices)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.permute(0, 2, 3, 1)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x, self._run)
            if i in self.out_indices:
                maps.append(x.permute(0, 3, 1, 2).contiguous())
        return tuple(maps)

    def frozen_parts(self, frozen_stages: int) -> list[nn.Module]:
        """`Backbone.frozen_parts`; the stem is the first embedding."""
        stem = self.stages[0]
        return [stem.embed, stem.post_norm, *self.stages[:frozen_stages]]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """`Backbone.get_layer_depth`: one layer per block; an embedding counts with the last
        block before it."""
        depths = self.settings['depths'][:self.num_stages]
        num_layers = sum(depths) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or not name.startswith('stages.'):
            return num_layers - 1, num_layers
        _, stage, part, index, *_ = name.split('.')
        before = sum(depths[:int(stage)])
        return (before + int(index) + 1 if part == 'blocks' else before), num_layers

    def _stage_settings(self, stage: int) -> dict[str, Any]:
        settings = self.settings
        total, first = sum(settings['depths']), sum(settings['depths'][:stage])
        rates = drop_path_rates(settings['drop_path_rate'], total)
        return dict(
            num_heads=settings['num_heads'][stage],
            group_size=settings['group_size'][stage],
            interval=settings['interval'][stage],
            drop_paths=rates[first:first + settings['depths'][stage]],
            cooling=settings['cooling'],
            kernels=settings['kernel_sizes'][stage])


def _check_settings(settings: Mapping[str, Any]) -> None:
    stages = len(settings['depths'])
    for name in ('num_heads', 'group_size', 'interval'):
        check_numbers(name, settings[name], count=stages, most=MOST_TOKENS)
    dims = settings['embed_dims']
    check_numbers('embed_dims', dims, least=32)
    if dims % 8:
        # Below 32 the DPB network is one channel wide, which its LayerNorm makes a constant.
        raise ValueError(f'embed_dims={dims}: must be a multiple of 8 and at least 32')
    for i, heads in enumerate(settings['num_heads']):
        if dims * 2**i % heads:
            raise ValueError(
                f'num_heads={settings["num_heads"]}: {heads} heads do not divide the '
                f'{dims * 2**i} channels of stage {i}')
    _check_kernels(settings['kernel_sizes'], dims, stages)
    check_drop_path_rate(settings['drop_path_rate'])


def _check_kernels(kernel_sizes: Sequence[Sequence[int]], dims: int, stages: int) -> None:
    if not isinstance(kernel_sizes, Sequence) or len(kernel_sizes) != stages:
        raise ValueError(f'kernel_sizes={kernel_sizes!r}: give a tuple for each of {stages} stages')
    for stage, kernels in enumerate(kernel_sizes):
        check_numbers(f'kernel_sizes={kernel_sizes!r}, stage {stage}', kernels, count=0, most=255)
        stride = MERGE_STRIDE if stage else STEM_STRIDE
        if any(kernel < stride or (kernel - stride) % 2 for kernel in kernels):
            raise ValueError(
                f'kernel_sizes={kernel_sizes}: those of stage {stage} must be {stride} or larger by '
                'an even number, so that each patch is in the middle of its kernel')
        if dims * 2**stage % 2**(len(kernels) - 1):
            raise ValueError(
                f'kernel_sizes={kernel_sizes}: {len(kernels)} kernels do not share the '
                f'{dims * 2**stage} channels of stage {stage}; each has half of those before it')
