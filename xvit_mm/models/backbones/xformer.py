"""XFormer (arXiv 2207.07268): MobileNetV3 blocks and linear-cost transformers, for mobile devices.

A convolution and five stages. Stages 1 and 2 are MobileNetV3 (MV3) blocks; stages 3 to 5 are one
MV3 block and several XF blocks, which are pre-norm transformer blocks with cross feature attention.

No official code or checkpoint exists, and the paper's tables and formulas could not be read: this is
a reconstruction. docs/xformer.md says for every detail whether it is the paper's, comes from
secondary sources, follows from the published numbers, or is inferred.

A map with an odd side is neither padded nor resized: its border patches are incomplete, so some of
the sequences that the attention mixes are shorter than others.

    convolution -> MV3 -> [MV3, ..., local -> unfold -> XF block, ... -> fold -> fusion] -> ...
"""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from typing_extensions import Unpack

from xvit_mm.checkpoints import XFORMER_NAMES
from xvit_mm.registry import MODELS

from ..layers import (ATTN_MODES, MLP, CrossFeatureAttention, DepthwiseConv2d, DropPath, Stage,
                      fold, unfold)
from ..layers.cache import is_compiling, is_exporting
from ..settings import (MOST, MOST_BLOCKS, TRUNC_NORMAL_INIT, check_choice, check_drop_path_rate,
                        check_numbers, drop_path_rates)
from .base import Backbone, CommonArguments, accepts_common_arguments

# The paper's stages 2 to 5 are the four stages here, with strides 4 to 32 as in every backbone. Its
# stage 1 has stride 2 and is part of the stem: stem_channels are the convolution's and the stage's.
# yapf: disable
VARIANTS = {
    's': dict(
        stem_channels=(16, 32),
        # paper's stage 2    3    4    5
        embed_dims=    (64,  96, 128, 160),
        mv3_depths=     (3,   1,   1,   1),
        xf_depths=      (0,   2,   4,   3),
        token_dims=     (0, 144, 192, 240),
        attn_dims=      (0,  96,  96,  96),
        mlp_ratio=      (0,   2,   2,   3),
        num_heads=4, expand_ratio=4, kernel_size=5, attn_mode='vector',
    ),
}
# yapf: enable

STEM_STRIDE, STAGE_STRIDE = 2, 2
SQUEEZE_RATIO = 4


def conv(in_channels: int, out_channels: int, kernel: int, **kwargs: Any) -> ConvModule:
    """Convolution, BatchNorm, SiLU; the size stays, or becomes ceil(size / stride)."""
    settings = dict(padding=kernel // 2, norm_cfg=dict(type='BN'), act_cfg=dict(type='SiLU'))
    return ConvModule(in_channels, out_channels, kernel, **settings | kwargs)


class SqueezeExcitation(nn.Module):
    """Weigh the channels of [B, C, H, W] by what their means over the map say."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = conv(channels, squeezed, 1, norm_cfg=None)
        self.expand = conv(squeezed, channels, 1, norm_cfg=None, act_cfg=None)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.reduce(_mean(x))))


def _mean(x: Tensor) -> Tensor:
    """The mean over the map, [B, C, 1, 1]."""
    if is_compiling() and not is_exporting():
        # Inductor compiles again when a sum grows beyond 4096 terms on a CPU; no side is so long.
        return x.mean(3, keepdim=True).mean(2, keepdim=True)
    return F.adaptive_avg_pool2d(x, 1)


class MV3Block(nn.Module):
    """Inverted residual with squeeze-and-excitation (MobileNetV3, arXiv 1905.02244).

    [B, C_in, H, W] to [B, C_out, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, expand_ratio: int, kernel: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.expand = conv(in_channels, hidden, 1)
        self.depthwise = conv(hidden, hidden, kernel, stride=stride, groups=hidden,
                              conv_cfg=dict(type=DepthwiseConv2d))
        self.se = SqueezeExcitation(hidden, max(1, hidden // SQUEEZE_RATIO))
        self.project = conv(hidden, out_channels, 1, act_cfg=None)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class XFBlock(nn.Module):
    """Pre-norm transformer block with cross feature attention: tokens [B, T, C] to the same."""

    def __init__(
        self,
        embed_dims: int,
        attn_dims: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        **attn: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = CrossFeatureAttention(embed_dims, attn_dims, **attn)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = MLP(embed_dims, int(mlp_ratio * embed_dims))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
        x = self.drop_path.add(x, self.attn(self.norm1(x), lengths))
        return self.drop_path.add(x, self.mlp(self.norm2(x)))


class PatchTransformer(nn.Module):
    """XF blocks between an unfolding into patches and its inverse: [B, C, H, W] to the same.

    A local convolution comes before them, and a fusion with the input after them, as in MobileViT
    (arXiv 2110.02178). There is no position encoding.
    """

    def __init__(
        self, channels: int, token_dims: int, *, drop_paths: Sequence[float], **block: Any
    ) -> None:
        super().__init__()
        self.local = conv(channels, channels, 3)
        self.to_tokens = conv(channels, token_dims, 1, norm_cfg=None, act_cfg=None, bias=False)
        self.blocks = nn.ModuleList(
            XFBlock(token_dims, drop_path=drop_path, **block) for drop_path in drop_paths)
        self.norm = nn.LayerNorm(token_dims)
        self.to_map = conv(token_dims, channels, 1)
        self.fusion = conv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens, lengths = unfold(self.to_tokens(self.local(x)))
        for block in self.blocks:
            tokens = block(tokens, lengths)
        y = self.to_map(fold(self.norm(tokens), *x.shape[2:]))
        return self.fusion(torch.cat([x, y], dim=1))


@MODELS.register_module()
class XFormer(Backbone):
    """XFormer for dense prediction and classification.

    Images [B, 3, H, W] of any size to maps [B, C_i, H / stride, W / stride] (rounded up) of
    strides 4, 8, 16, 32 with, in the published size, 64, 96, 128, 160 channels: the outputs of the
    paper's stages 2 to 5. The stem of `frozen_stages` includes the paper's stage 1.

    Args:
        arch: `s`, the published size, or a dict with what differs from it: stem_channels (two
            numbers); embed_dims, mv3_depths (blocks, at least 1), xf_depths (blocks, 0 for none),
            token_dims, attn_dims (width of q, k, v) and mlp_ratio, one for each stage; num_heads,
            expand_ratio, kernel_size (of the MV3 blocks), attn_mode.
        attn_mode: reading of the attention, `vector` or `map` (see `CrossFeatureAttention`);
            overrides the arch's.
        init_lambda: the attention's temperature at the start.
        drop_path_rate: of the last XF block, falling linearly to 0 at the first.
        common: `in_channels`, `frozen_stages`, `norm_eval`, `with_cp`, `init_cfg` of `Backbone`.

    The errors are those of `Backbone`.
    """

    variants = VARIANTS
    default_arch = 's'
    default_init_cfg = TRUNC_NORMAL_INIT
    official_names = XFORMER_NAMES

    @accepts_common_arguments
    def __init__(
        self,
        arch: str | Mapping[str, Any] = default_arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        attn_mode: str | None = None,
        init_lambda: float = 1.,
        drop_path_rate: float = 0.,
        **common: Unpack[CommonArguments],
    ) -> None:
        settings = self.variant(arch)
        settings |= dict(init_lambda=init_lambda, drop_path_rate=drop_path_rate)
        settings |= dict(attn_mode=attn_mode) if attn_mode is not None else {}
        _check_settings(settings)
        super().__init__(len(settings['embed_dims']), out_indices, **common)
        self.settings = settings
        stem, channels = settings['stem_channels'], settings['embed_dims'][:self.num_stages]
        self.stem = Stage(
            conv(self.in_channels, stem[0], 3, stride=STEM_STRIDE), self._mv3(*stem, stride=1))
        self.stages = nn.ModuleList(
            self._stage(i, source) for i, source in enumerate([stem[1], *channels[:-1]]))
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(STEM_STRIDE * STAGE_STRIDE**(i + 1) for i in self.out_indices)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x, self._run)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x, self._run)
            if i in self.out_indices:
                maps.append(x.contiguous())
        return tuple(maps)

    def frozen_parts(self, frozen_stages: int) -> list[nn.Module]:
        """`Backbone.frozen_parts`; the stem is everything before stride 4."""
        return [self.stem, *self.stages[:frozen_stages]]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """`Backbone.get_layer_depth`: one layer for each MV3 block and each XF block; the
        convolutions before XF blocks count with the first of them, those after with the last."""
        mv3, xf = (self.settings[key][:self.num_stages] for key in ('mv3_depths', 'xf_depths'))
        num_layers = sum(mv3) + sum(xf) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or not name.startswith(('stem.', 'stages.')):
            return num_layers - 1, num_layers
        part, *path = name.split('.')
        if part == 'stem':
            return 0, num_layers
        stage, block = int(path[0]), int(path[1])
        layer = sum(mv3[:stage]) + sum(xf[:stage]) + block + 1
        if path[2] == 'blocks':
            layer += int(path[3])
        elif path[2] in ('norm', 'to_map', 'fusion'):
            layer += xf[stage] - 1
        return layer, num_layers

    def _mv3(self, in_channels: int, out_channels: int, *, stride: int) -> MV3Block:
        return MV3Block(
            in_channels, out_channels, stride=stride,
            expand_ratio=self.settings['expand_ratio'], kernel=self.settings['kernel_size'])

    def _stage(self, stage: int, in_channels: int) -> Stage:
        settings, channels = self.settings, self.settings['embed_dims'][stage]
        depths = settings['xf_depths']
        blocks: list[nn.Module] = [self._mv3(in_channels, channels, stride=STAGE_STRIDE)]
        blocks += [self._mv3(channels, channels, stride=1)
                   for _ in range(settings['mv3_depths'][stage] - 1)]
        if depths[stage]:
            rates = drop_path_rates(settings['drop_path_rate'], sum(depths))
            first = sum(depths[:stage])
            blocks.append(PatchTransformer(
                channels, settings['token_dims'][stage],
                drop_paths=rates[first:first + depths[stage]],
                attn_dims=settings['attn_dims'][stage],
                mlp_ratio=settings['mlp_ratio'][stage],
                num_heads=settings['num_heads'],
                mode=settings['attn_mode'],
                init_lambda=settings['init_lambda']))
        return Stage(*blocks)


def _check_settings(settings: Mapping[str, Any]) -> None:
    check_numbers('stem_channels', settings['stem_channels'], count=2)
    check_numbers('embed_dims', settings['embed_dims'], count=0)
    stages = len(settings['embed_dims'])
    check_numbers('mv3_depths', settings['mv3_depths'], count=stages, most=MOST_BLOCKS)
    check_numbers('xf_depths', settings['xf_depths'], count=stages, least=0, most=MOST_BLOCKS)
    for name, whole in (('token_dims', True), ('attn_dims', True), ('mlp_ratio', False)):
        values = settings[name]
        check_numbers(name, values, count=stages, least=0, whole=whole)
        if any(depth and not value for depth, value in zip(settings['xf_depths'], values)):
            raise ValueError(
                f'{name}={values} is 0 in a stage that has XF blocks: '
                f'xf_depths={settings["xf_depths"]}')
    heads, kernel = settings['num_heads'], settings['kernel_size']
    check_numbers('num_heads', heads)
    if any(dims % heads for dims in settings['attn_dims']):
        raise ValueError(
            f'num_heads={heads}: must divide every one of attn_dims={settings["attn_dims"]}')
    check_numbers('kernel_size', kernel, most=255)
    if kernel % 2 == 0:
        raise ValueError(f'kernel_size={kernel}: must be odd, for maps of the announced size')
    check_numbers('expand_ratio', settings['expand_ratio'], most=256)
    check_numbers('init_lambda', settings['init_lambda'], least=-MOST, whole=False)
    check_choice('attn_mode', settings['attn_mode'], ATTN_MODES)
    check_drop_path_rate(settings['drop_path_rate'])
