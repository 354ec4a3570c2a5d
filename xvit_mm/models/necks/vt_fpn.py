"""VT-FPN: a feature pyramid whose levels exchange visual tokens (arXiv 2006.03677 v4).

FPN merges its levels by interpolation and 3 x 3 convolutions on every map. VT-FPN takes a few
tokens from each level, relates the tokens of all levels in one transformer, and writes each level's
tokens back to it; that costs a sixth of the multiply-adds.

    map -> 1 x 1 lateral -> tokenizer -+               +-> projector -> map      one row per level
    map -> 1 x 1 lateral -> tokenizer -+- transformer -+-> projector -> map

The laterals of FPN stay and its 3 x 3 convolutions go, the tokenizers have no value projection, and
the queries of the projectors have 16 groups: that gives the published multiply-adds for images of
800 x 1216 and of 473 x 473. SyncBN follows every layer but the coefficients, projectors start at
zero, and with several layers the later ones have recurrent tokenizers. Queries start at full size
and the logits of the filters are not scaled, which learned faster than the start of VT-ResNet.
docs/vt.md has the source of each reading in one table.
"""
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import ConvModule
from mmengine.model import BaseModule, xavier_init
from torch import Tensor, nn

from xvit_mm.registry import MODELS

from ..layers import (FilterTokenizer, PointwiseConv, Projector, RecordsSettings,
                      RecurrentTokenizer, Tokenizer, TokenTransformer)

EXTRA_SOURCES = ('on_input', 'on_lateral', 'on_output')
QUERY_GROUPS = 16
BATCH_NORM: Mapping[str, Any] = MappingProxyType(dict(type='BN'))


class VTPyramidLayer(nn.Module):
    """Tokenizers and projectors for each level around one transformer.

    Maps, a list of [B, C, H_i, W_i], and the tokens of the layer before, a list of [B, CT, L_i] or
    None, to both of the same shapes. `num_tokens` holds L_i; `first` layers use filters, later
    ones the tokens given.
    """

    def __init__(
        self,
        channels: int,
        token_channels: int,
        *,
        num_tokens: Sequence[int],
        first: bool,
        num_heads: int,
        scale_filters: bool,
        scale_recurrent: bool,
        scale_transformer: bool,
        scale_projector: bool,
        query_gain: float,
        zero_init: bool,
        norm_cfg: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.num_tokens = list(num_tokens)
        tokenizer = FilterTokenizer if first else RecurrentTokenizer
        self.tokenizers = nn.ModuleList(
            tokenizer(channels, token_channels, num_tokens=count, value_conv=False,
                      scale_logits=scale_filters if first else scale_recurrent,
                      query_gain=query_gain, norm_cfg=norm_cfg)
            for count in num_tokens)
        common: dict[str, Any] = dict(
            num_heads=num_heads, query_gain=query_gain, zero_init=zero_init, norm_cfg=norm_cfg)
        self.transformer = TokenTransformer(
            token_channels, scale_logits=scale_transformer, **common)
        self.projectors = nn.ModuleList(
            Projector(channels, channels, token_channels, scale_logits=scale_projector,
                      group_width=max(1, channels // QUERY_GROUPS), **common)
            for _ in num_tokens)

    def forward(
        self, maps: Sequence[Tensor], tokens: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        given: Sequence[Tensor | None] = tokens or [None] * len(maps)
        found = [level(x, t) for level, x, t in zip(self.tokenizers, maps, given)]
        related = list(self.transformer(torch.cat(found, dim=2)).split(self.num_tokens, dim=2))
        return [level(x, t) for level, x, t in zip(self.projectors, maps, related)], related

    def token_attention(
        self, maps: Sequence[Tensor], tokens: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """The weights [B, L_i, H_i, W_i] that the tokens of each level are made with."""
        tokenizers = cast(Iterable[Tokenizer], self.tokenizers)
        given: Sequence[Tensor | None] = tokens or [None] * len(maps)
        return [level.attention(x, t).unflatten(2, x.shape[2:])
                for level, x, t in zip(tokenizers, maps, given)]


@MODELS.register_module()
class VTFPN(RecordsSettings, BaseModule):
    """VT-FPN, for any place where mmdet and mmseg take an `FPN`.

    Maps [B, in_channels[i], H_i, W_i] of any sizes, as a backbone gives them, to `num_outs` maps
    [B, out_channels, ...]: one for each level from `start_level` to `end_level`, of its size, and
    extra levels of half the size each (rounded up).

    Args:
        num_outs: number of outputs.
        num_tokens: L, tokens per level, one number or one for each level; the paper has 8.
        token_channels: CT.
        num_layers: how often tokens are taken and written back.
        with_top_down: add every coarser lateral to the finer one before, as FPN does.
        start_level, end_level: the first and the last input in use; -1 is the last there is.
        add_extra_convs: how extra levels come about, as in FPN: False max-pools the last output
            (Mask R-CNN); `on_input`, `on_lateral` and `on_output` put strided convolutions on the
            last input, lateral or output (RetinaNet); True is `on_input`.
        relu_before_extra_convs: ReLU between these convolutions.
        num_heads: of the transformer and the projectors.
        scale_filters: divide the logits of the filters by sqrt(C), see `VTResNet`.
        scale_recurrent, scale_transformer, scale_projector: divide the logits of the recurrent
            tokenizers, the transformer and the projectors by sqrt(d), d the channels of a head.
        scale_logits: shorthand that sets these three; False is the paper's formulas.
        query_gain: size at which the queries of these three start; 1 is that of what they read.
        zero_init_residual: residual branches that end in a norm start at zero.
        norm_cfg: the paper trains with `dict(type='SyncBN')`, which needs a GPU; None is no norm.
        init_cfg: as in mmengine; by default layers are initialised at construction.

    The settings that a state dict does not show by itself are saved with the weights.

    Raises:
        ValueError: settings outside their range, or another number of maps than `in_channels`.
        CheckpointError: weights that were made with other settings.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        *,
        num_outs: int,
        num_tokens: int | Sequence[int] = 8,
        token_channels: int = 1024,
        num_layers: int = 1,
        with_top_down: bool = False,
        start_level: int = 0,
        end_level: int = -1,
        add_extra_convs: bool | str = False,
        relu_before_extra_convs: bool = False,
        num_heads: int = 1,
        scale_filters: bool = False,
        scale_recurrent: bool = True,
        scale_transformer: bool = True,
        scale_projector: bool = True,
        scale_logits: bool | None = None,
        query_gain: float = 1.,
        zero_init_residual: bool = True,
        norm_cfg: Mapping[str, Any] | None = BATCH_NORM,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_layers < 1:
            raise ValueError(f'num_layers={num_layers}: must be at least 1')
        if query_gain <= 0:
            raise ValueError(f'query_gain={query_gain}: must be above 0')
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.levels = _checked_levels(len(in_channels), start_level, end_level, num_outs)
        self.num_outs = num_outs
        self.add_extra_convs = _checked_extra_convs(add_extra_convs)
        self.relu_before_extra_convs = relu_before_extra_convs
        self.with_top_down = with_top_down
        norm_cfg = dict(norm_cfg) if norm_cfg else None
        used = [in_channels[i] for i in self.levels]
        counts = _per_level(num_tokens, len(used))
        if scale_logits is not None:
            scale_recurrent = scale_transformer = scale_projector = scale_logits
        scales = dict(
            scale_filters=scale_filters, scale_recurrent=scale_recurrent,
            scale_transformer=scale_transformer, scale_projector=scale_projector)
        self.recorded = dict(
            scales, num_tokens=counts, num_heads=num_heads, with_top_down=with_top_down,
            add_extra_convs=self.add_extra_convs, relu_before_extra_convs=relu_before_extra_convs)
        self.lateral_convs = nn.ModuleList(_conv(c, out_channels, 1, norm_cfg) for c in used)
        self.layers = nn.ModuleList(
            VTPyramidLayer(
                out_channels, token_channels, num_tokens=counts, first=i == 0,
                num_heads=num_heads, **scales, query_gain=query_gain,
                zero_init=zero_init_residual, norm_cfg=norm_cfg)
            for i in range(num_layers))
        sources = [out_channels] * (num_outs - len(used) if self.add_extra_convs else 0)
        if self.add_extra_convs == 'on_input':
            sources[:1] = used[-1:][:len(sources)]
        self.extra_convs = nn.ModuleList(_conv(c, out_channels, 3, norm_cfg) for c in sources)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        laterals = self._laterals(inputs)
        maps, tokens = laterals, None
        for layer in self.layers:
            maps, tokens = layer(maps, tokens)
        sources = {None: None, 'on_input': inputs[self.levels[-1]], 'on_lateral': laterals[-1],
                   'on_output': maps[-1]}
        return tuple(maps + self._extra_levels(maps[-1], sources[self.add_extra_convs]))

    @torch.no_grad()
    def token_attention(self, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        """Where each token looks: maps as `forward` takes them to one list for each layer, with
        weights [B, L_i, H_i, W_i] for each level in use; those of a token sum to 1."""
        maps, tokens, attentions = self._laterals(inputs), None, []
        for layer in cast(Iterable[VTPyramidLayer], self.layers):
            attentions.append(layer.token_attention(maps, tokens))
            maps, tokens = layer(maps, tokens)
        return attentions

    def _laterals(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f'{len(inputs)} maps were given, but in_channels={self.in_channels} announces '
                f'{len(self.in_channels)}: make them agree with the backbone')
        laterals = [conv(inputs[i]) for conv, i in zip(self.lateral_convs, self.levels)]
        return _summed_top_down(laterals) if self.with_top_down else laterals

    def _extra_levels(self, last: Tensor, source: Tensor | None) -> list[Tensor]:
        """The outputs beyond the levels in use; by max-pooling without a source."""
        if source is None:
            pooled = [last]
            for _ in range(self.num_outs - len(self.levels)):
                pooled.append(F.max_pool2d(pooled[-1], 1, stride=2))
            return pooled[1:]
        extra: list[Tensor] = []
        for conv in self.extra_convs:
            source = F.relu(source) if extra and self.relu_before_extra_convs else source
            extra.append(conv(source))
            source = extra[-1]
        return extra


def _summed_top_down(maps: Sequence[Tensor]) -> list[Tensor]:
    """Every map plus all coarser ones, enlarged: FPN's path, on [B, C, H_i, W_i]."""
    summed = [maps[-1]]
    for x in reversed(maps[:-1]):
        summed.insert(0, x + F.interpolate(summed[0], size=x.shape[2:], mode='nearest'))
    return summed


def _conv(
    in_channels: int, out_channels: int, kernel: int, norm_cfg: dict | None
) -> ConvModule:
    """A lateral (kernel 1) or a convolution of stride 2 for an extra level (kernel 3)."""
    layer, stride = (PointwiseConv, 1) if kernel == 1 else (ConvModule, 2)
    conv = layer(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, norm_cfg=norm_cfg,
        act_cfg=None)
    xavier_init(conv.conv, distribution='uniform')
    return conv


def _per_level(num_tokens: int | Sequence[int], levels: int) -> list[int]:
    counts = [num_tokens] * levels if isinstance(num_tokens, int) else list(num_tokens)
    if len(counts) != levels or min(counts) < 1:
        raise ValueError(
            f'num_tokens={num_tokens}: give a number of at least 1, or one for each of the '
            f'{levels} levels in use')
    return counts


def _checked_levels(num_inputs: int, start: int, end: int, num_outs: int) -> range:
    levels = range(start, num_inputs if end == -1 else end + 1)
    if not 0 <= start < levels.stop <= num_inputs:
        raise ValueError(
            f'start_level={start}, end_level={end}: with {num_inputs} inputs take '
            f'0 <= start_level <= end_level <= {num_inputs - 1}, or end_level=-1 for the last')
    if num_outs < len(levels):
        raise ValueError(
            f'num_outs={num_outs}: the levels {levels.start} to {levels.stop - 1} alone give '
            f'{len(levels)} outputs; raise num_outs, or set end_level')
    return levels


def _checked_extra_convs(add_extra_convs: bool | str) -> str | None:
    if isinstance(add_extra_convs, bool):
        return EXTRA_SOURCES[0] if add_extra_convs else None
    if add_extra_convs not in EXTRA_SOURCES:
        raise ValueError(
            f'add_extra_convs={add_extra_convs!r}: choose True, False or one of {EXTRA_SOURCES}')
    return add_extra_convs
