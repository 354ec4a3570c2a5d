"""VT-ResNet: ResNets whose last stage is visual tokens (arXiv 2006.03677 v4, ICCV 2021).

    images -> ResNet stem, layers 1 to 3 -> [tokenizer -> transformer -> projector] x 2 or 3

The last stage relates 16 tokens where ResNet convolves a map. The first VT module finds its tokens
with learned filters, the later ones with the tokens of the module before. A classifier reads the
tokens; detectors and segmentors read the maps, the last of which the projectors write.

There is no official code. The structure is the one that gives the published numbers of parameters
and multiply-adds of Tables 2 to 7; docs/vt.md has the source of each reading in one table.
Deviations from the formulas, each an argument, chosen by the runs in docs/vt.md:
- A norm after every layer of the VT modules, logits of some attentions divided by sqrt(d), queries
  that start small.
- The map of VT, at stride 16, is max-pooled to stride 32, which detectors expect of a ResNet's last
  map; `pool_last=False` gives it as it is.
"""
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmengine.logging import print_log
from mmengine.model import Sequential
from torch import Tensor, nn
from typing_extensions import Unpack

from xvit_mm.checkpoints import VT_RESNET_NAMES
from xvit_mm.registry import MODELS

from ..layers import Stage, VTSettings
from ..layers.cache import is_compiling, sizes_are_symbolic
from ..layers.recorded_settings import EXTRA_STATE
from ..settings import (MOST_BLOCKS, check_choice, check_drop_path_rate, check_mapping,
                        check_numbers, drop_path_rates)
from .base import Backbone, CommonArguments, accepts_common_arguments

# The paper's architecture table: blocks of layers 1 to 3, VT modules in place of layer 4, whether
# the blocks are bottlenecks.
_FIELDS = ('depths', 'num_modules', 'bottleneck')
# yapf: disable
VARIANTS = {name: dict(zip(_FIELDS, row)) for name, row in {
    #       blocks      VT  bottleneck
    'r18':  ((2, 2, 2),  2, False),
    'r34':  ((3, 4, 6),  3, False),
    'r50':  ((3, 4, 6),  3, True),
    'r101': ((3, 4, 23), 3, True),
}.items()}
# yapf: enable
DEPTHS = (18, 34, 50, 101)

# Where the ResNet comes from, the first that is installed. They agree in structure, results and the
# names of their tensors, but only mmpretrain's has drop path.
PACKAGES = ('mmdet', 'mmpretrain', 'mmseg')
WITH_DROP_PATH = ('mmpretrain',)
NUM_CONV_STAGES = 3


class ConvStage(Sequential, Stage):
    """The residual blocks of one layer of a ResNet, [B, C_in, H, W] to [B, C_out, H', W'].

    mmengine's `Sequential` lets the blocks initialise themselves.
    """


@MODELS.register_module()
class VTResNet(Backbone):
    """VT-ResNet for dense prediction and classification.

    Images [B, 3, H, W] of any size to maps [B, C_i, H / stride, W / stride] (rounded up) of
    strides 4, 8, 16, 32. With `out_type='tokens'` the last output is tokens [B, L, CT] instead,
    for `VTClsHead`. The convolutional part is the ResNet of mmdet, mmpretrain or mmseg, whichever
    is installed, and takes torchvision's weights (`init_cfg=dict(type='Pretrained', ...)`).

    Args:
        arch: `r18`, `r34`, `r50`, `r101`, or a dict of what differs from `r18`: depths (residual
            blocks of layers 1 to 3), num_modules (VT modules in place of layer 4), bottleneck.
        out_type: `featmap` or `tokens`, what the last stage gives.
        tokenizer: `filter`, `pooling` or `clustering` (Table 3).
        recurrent: whether modules after the first take the recurrent tokenizer (Table 4). Default:
            yes, except with `pooling`, where the published numbers say no.
        interaction: `transformer`, `graph` (a graph convolution) or `none` (Table 5).
        num_tokens: L, tokens per image (Table 6).
        with_projector: False tokenizes once and stacks transformers; tokens only (Table 7).
        depth: 18, 34, 50 or 101, as in a ResNet: `depth=50` is `arch='r50'`, whatever `arch` says.
        num_modules: VT modules; overrides the arch's.
        token_channels: CT.
        num_heads: of the transformers and projectors.
        value_conv: False leaves the grouped projection out of the tokenizers, as in the formula.
        scale_filters: divide the logits of filters or cluster centroids by sqrt(C). Filters then
            start sqrt(C) times as large, so the start is the same, but they learn more slowly
            (docs/vt.md). Default: yes for `filter`, no for `clustering`, whose attention would be
            almost an average.
        scale_recurrent, scale_transformer, scale_projector: divide the logits of the recurrent
            tokenizers, the transformers and the projectors by sqrt(d), d the channels of a head.
        scale_logits: shorthand that sets all four; False is the paper's formulas.
        query_gain: size at which the queries of these three start; 1 is that of what they read.
            Below it, attention starts as almost an average.
        token_norm: norms in the VT modules; False as in the formulas.
        zero_init_residual: residual branches that end in a norm start at zero, in both parts; in
            short runs from scratch they hardly leave it.
        pool_last: max-pool the last map to stride 32; else it has the stride 16 of VT.
        base_channels: of layer 1 before its expansion; the widths of all maps follow.
        resnet: further arguments of the ResNet, such as `dict(deep_stem=True)`, or its `type`:
            `dict(type='mmpretrain.ResNet_CIFAR')` has strides 1, 2, 4, 8, for small images.
        norm_cfg: of both parts; default `dict(type='BN')`.
        drop_path_rate: of the last VT module; the rates of the blocks before it fall linearly to 0
            at the first block of the ResNet. Above 0 it needs mmpretrain's ResNet.
        common: `in_channels`, `frozen_stages`, `norm_eval`, `with_cp`, `init_cfg` of `Backbone`.

    The errors are those of `Backbone`. The settings that a state dict does not show by itself, such
    as `scale_filters`, are saved with the weights.

    Raises:
        ImportError: there is no package to take the ResNet from.
        ValueError: a setting outside its range, or settings that exclude each other.
        CheckpointError: weights that were made with other settings.
    """

    variants = VARIANTS
    default_arch = 'r18'
    resnet: Any  # mmdet's, mmpretrain's or mmseg's
    vt: Any  # a VTStage, or an empty list
    official_names = VT_RESNET_NAMES

    @accepts_common_arguments
    def __init__(
        self,
        arch: str | Mapping[str, Any] = default_arch,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        depth: int | None = None,
        out_type: str = 'featmap',
        tokenizer: str = 'filter',
        recurrent: bool | None = None,
        interaction: str = 'transformer',
        num_tokens: int = 16,
        with_projector: bool = True,
        num_modules: int | None = None,
        token_channels: int = 1024,
        num_heads: int = 1,
        value_conv: bool = True,
        scale_filters: bool | None = None,
        scale_recurrent: bool = True,
        scale_transformer: bool = True,
        scale_projector: bool = True,
        scale_logits: bool | None = None,
        query_gain: float = 0.1,
        token_norm: bool = True,
        zero_init_residual: bool = False,
        pool_last: bool = True,
        base_channels: int = 64,
        resnet: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(NUM_CONV_STAGES + 1, out_indices, **common)
        variant = self.variant(_arch_of_depth(depth, arch))
        variant |= {} if num_modules is None else dict(num_modules=num_modules)
        norm_cfg = norm_cfg or dict(type='BN')
        _check_settings(variant, base_channels, drop_path_rate, resnet, norm_cfg)
        conv_rates, vt_rates = _split_drop_path_rates(drop_path_rate, variant)
        scales = dict(
            scale_filters=tokenizer == 'filter' if scale_filters is None else scale_filters,
            scale_recurrent=scale_recurrent, scale_transformer=scale_transformer,
            scale_projector=scale_projector)
        if scale_logits is not None:
            scales = dict.fromkeys(scales, scale_logits)
        self.pool_last = pool_last
        self.settings = VTSettings(
            tokenizer=tokenizer, interaction=interaction, num_tokens=num_tokens,
            # Pooling in every module is what the numbers of its row in Table 3 say.
            recurrent=tokenizer != 'pooling' if recurrent is None else recurrent,
            with_projector=with_projector, token_channels=token_channels, num_heads=num_heads,
            value_conv=value_conv, **scales, query_gain=query_gain, zero_init=zero_init_residual,
            drop_path_rates=vt_rates, norm_cfg=dict(norm_cfg) if token_norm else None)
        self.out_type = self._checked_out_type(out_type)
        self.resnet = _build_resnet(
            resnet or {}, variant, drop_path_rates=conv_rates,
            num_stages=min(self.num_stages, NUM_CONV_STAGES), in_channels=self.in_channels,
            base_channels=base_channels, stem_channels=base_channels, norm_cfg=dict(norm_cfg),
            zero_init_residual=zero_init_residual)
        self._build_vt(base_channels, 4 if variant['bottleneck'] else 1)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self._conv_maps(x)
        if self.vt:
            x, tokens = self.vt(maps[-1], self._run)
            maps.append(tokens.transpose(1, 2) if self.out_type == 'tokens' else self._pooled(x))
        return tuple(maps[i].contiguous() for i in self.out_indices)

    @torch.no_grad()
    def token_attention(self, x: Tensor) -> list[Tensor]:
        """Where each token looks: images [B, 3, H, W] to a map [B, L, H / 16, W / 16] of weights.

        One map for each VT module that has a tokenizer; the weights of a token sum to 1.

        Raises:
            ValueError: the backbone has no VT modules, or their tokens are pooled.
        """
        if not self.vt:
            raise ValueError(f'out_indices={self.out_indices} builds no VT modules: add 3')
        return self.vt.token_attention(self._conv_maps(x)[-1])

    def fit_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`Backbone.fit_weights`; refuses weights that were made with other settings."""
        # Before any tensor is loaded; the stage itself would ask too late.
        if self.vt and (record := state_dict.get(f'vt.{EXTRA_STATE}')) is not None:
            self.vt.check_settings(record)
        return state_dict

    def frozen_parts(self, frozen_stages: int) -> list[nn.Module]:
        """`Backbone.frozen_parts`."""
        net = self.resnet
        stem = [net.stem] if net.deep_stem else [net.conv1, net.norm1]
        return [*stem, *[*self._layers(), self.vt][:frozen_stages]]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """`Backbone.get_layer_depth`: one layer per residual block and per VT module."""
        depths = [len(layer) for layer in self._layers()] + [len(self.vt)]
        num_layers = sum(depths) + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix) or not name.startswith(('resnet.', 'vt.')):
            return num_layers - 1, num_layers
        if name.startswith('vt.'):
            return sum(depths[:-1]) + int(name.split('.')[1]) + 1, num_layers
        _, part, index, *_ = name.split('.')
        if not part.startswith('layer'):
            return 0, num_layers
        return sum(depths[:int(part.removeprefix('layer')) - 1]) + int(index) + 1, num_layers

    def _build_vt(self, base_channels: int, expansion: int) -> None:
        """The VT modules, and what they and the ResNet give out."""
        channels = [base_channels * 2**i * expansion for i in range(NUM_CONV_STAGES)]
        # Table of the architecture: 256 to 512 channels, or 1024 throughout.
        vt_channels = max(channels[-1], 8 * base_channels)
        with_maps = self.out_type == 'featmap'
        self.vt = nn.ModuleList()
        if self.num_stages > NUM_CONV_STAGES:
            self.vt = self.settings.build(channels[-1], vt_channels, map_output=with_maps)
        stem_stride = 4 if hasattr(self.resnet, 'maxpool') else 1
        strides = [stem_stride * s for s in (1, 2, 4, 8 if self.pool_last and with_maps else 4)]
        channels.append(vt_channels if with_maps else self.settings.token_channels)
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)

    def _conv_maps(self, x: Tensor) -> list[Tensor]:
        """The maps of ResNet's layers, as far as they are built."""
        net, maps = self.resnet, []
        x = net.stem(x) if net.deep_stem else net.relu(net.norm1(net.conv1(x)))
        if hasattr(net, 'maxpool'):
            x = _max_pool(net.maxpool, x)
        for layer in self._layers():
            maps.append(x := layer(x, self._run))
        return maps

    def _layers(self) -> list[ConvStage]:
        return [getattr(self.resnet, name) for name in self.resnet.res_layers]

    def _pooled(self, x: Tensor) -> Tensor:
        if not self.pool_last:
            return x
        if not sizes_are_symbolic():
            return F.max_pool2d(x, 2, ceil_mode=True)
        # Exporters fix whether ceil_mode rounds up, and that of torch 2.1 does not know it.
        return _max_pool(nn.MaxPool2d(2), F.pad(x, (0, 1, 0, 1), value=float('-inf')))

    def _checked_out_type(self, out_type: str) -> str:
        check_choice('out_type', out_type, ('featmap', 'tokens'))
        last = NUM_CONV_STAGES in self.out_indices
        if out_type == 'tokens' and not last:
            raise ValueError(
                f"out_type='tokens' with out_indices={self.out_indices}: tokens are the output of "
                'stage 3, so out_indices must contain 3')
        if out_type == 'featmap' and last and not self.settings.with_projector:
            raise ValueError(
                'with_projector=False gives tokens only: take out_type="tokens", or leave 3 out '
                f'of out_indices={self.out_indices}')
        return out_type


def _arch_of_depth(depth: int | None, arch: Any) -> Any:
    """The arch that `depth` stands for, or `arch`, of which a bare depth is a name too."""
    if depth is None:
        return f'r{arch}' if str(arch).isdigit() else arch
    check_choice('depth', depth, DEPTHS)
    if arch not in (VTResNet.default_arch, f'r{depth}'):
        print_log(f'VTResNet: depth={depth} takes the place of arch={arch!r}', logger='current')
    return f'r{depth}'


def _check_settings(
    variant: Mapping[str, Any], base_channels: Any, drop_path_rate: Any, resnet: Any, norm_cfg: Any
) -> None:
    check_numbers('depths', variant['depths'], count=NUM_CONV_STAGES, most=MOST_BLOCKS)
    check_numbers('num_modules', variant['num_modules'], most=MOST_BLOCKS)
    check_choice('bottleneck', variant['bottleneck'], (False, True))
    check_numbers('base_channels', base_channels)
    check_drop_path_rate(drop_path_rate)
    check_mapping('norm_cfg', norm_cfg)
    if resnet is not None and not isinstance(resnet, Mapping):
        raise ValueError(f'resnet={resnet!r}: give a dict of arguments of the ResNet')


def _split_drop_path_rates(
    drop_path_rate: float, variant: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """Rates of the residual blocks and of the VT modules after them."""
    blocks = sum(variant['depths'])
    rates = drop_path_rates(drop_path_rate, blocks + variant['num_modules'])
    return rates[:blocks], rates[blocks:]


def _max_pool(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    if not is_compiling():
        return pool(x)
    # A graph with a stride here holds for odd or for even maps alone.
    x = F.max_pool2d(x, pool.kernel_size, 1, pool.padding)
    return x[..., ::pool.stride, ::pool.stride]


def _build_resnet(
    overrides: Mapping[str, Any],
    variant: Mapping[str, Any],
    *,
    num_stages: int,
    drop_path_rates: Sequence[float],
    **settings: Any,
) -> Any:
    """An installed ResNet without its last stage, whose layers are `ConvStage`."""
    depth = tuple(variant['depths'])
    settings |= dict(
        depth=depth, num_stages=num_stages, out_indices=tuple(range(num_stages)),
        strides=(1, 2, 2)[:num_stages], dilations=(1, 1, 1)[:num_stages], norm_eval=False)
    if fixed := sorted(set(overrides) & set(settings)):
        raise ValueError(
            f'resnet={dict(overrides)}: {", ".join(fixed)} cannot be set there; these follow from '
            'the arguments of VTResNet')
    kind = overrides.get('type') or _installed_resnet(with_drop_path=any(drop_path_rates))
    print_log(f'VTResNet takes its convolutional part from {kind}', logger='current')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        raise ValueError(f'resnet=dict(type={kind!r}): no model of this name is registered')
    resnet = MODELS.build(settings | dict(overrides) | dict(
        type=_with_depth(cls, depth, bottleneck=variant['bottleneck'])))
    # The class made for this depth is gone, so that the model can be pickled.
    resnet.__class__ = cls
    for name in resnet.res_layers:
        setattr(resnet, name, ConvStage(*getattr(resnet, name)))
    if any(drop_path_rates):
        _set_drop_path_rates(resnet, drop_path_rates, kind)
    return resnet


def _with_depth(cls: type, depth: tuple[int, ...], *, bottleneck: bool) -> type:
    """The class of a ResNet, in which `depth` is a depth and stands for these residual blocks."""
    known = getattr(cls, 'arch_settings', {})
    block, _ = known.get(50 if bottleneck else 18, (None, None))
    if block is None:
        raise ValueError(
            f'resnet=dict(type={cls.__name__!r}): it has no '
            f'{"bottleneck" if bottleneck else "basic"} blocks, of which this arch is made')
    return type(cls.__name__, (cls,), dict(
        __module__=cls.__module__, arch_settings={depth: (block, (*depth, 1))}))


def _set_drop_path_rates(resnet: Any, rates: Sequence[float], kind: Any) -> None:
    blocks = [block for name in resnet.res_layers for block in getattr(resnet, name)]
    if not all(hasattr(block, 'drop_path') for block in blocks):
        raise ValueError(
            f'drop_path_rate={rates[-1]:.3g} at the end of the ResNet: the blocks of {kind} have '
            f'no drop path. Take a ResNet of {" or ".join(WITH_DROP_PATH)}, or drop_path_rate=0')
    for block, rate in zip(blocks, rates):
        block.drop_path = DropPath(rate)


def _installed_resnet(*, with_drop_path: bool) -> str:
    """The name of the first ResNet that is installed, and has drop path if need be."""
    packages = WITH_DROP_PATH if with_drop_path else PACKAGES
    for package in packages:
        if find_spec(package):
            return f'{package}.ResNet'
    if with_drop_path:
        raise ImportError(
            f'drop_path_rate above 0 needs the ResNet of {" or ".join(packages)}, which is not '
            'installed: `pip install onedl-mmpretrain`, or `mmpretrain` on the upstream stack')
    raise ImportError(
        f'VTResNet takes its convolutional part from the ResNet of {", ".join(packages)}, and '
        'none of them is installed. Install the one that you work with, for instance '
        '`pip install onedl-mmdetection`, or `mmdet` on the upstream stack')
