"""VT-ResNet: ResNets whose last stage is visual tokens (arXiv 2006.03677 v4, ICCV 2021).

    images -> ResNet stem, layers 1 to 3 -> [tokenizer -> transformer -> projector] x 2 or 3

The last stage relates 16 tokens where ResNet convolves a map. The first VT module finds its tokens
with learned filters, the later ones with the tokens of the module before. A classifier reads the
tokens; detectors and segmentors read the maps, the last of which the projectors write.

There is no official code. The structure is the one that gives the published numbers of parameters
and multiply-adds of Tables 2 to 7. The tags [P] printed, [S] secondary, [N] pinned by the numbers
and [I] inferred are those of `layers/visual_tokens.py`. Beyond what is written there:
- The last module has no projector if only its tokens are used [N], and one for maps [I].
- A norm after every layer of the VT modules, logits of some attentions divided by sqrt(d), queries
  that start small, one head, and residual branches that do not start at zero are [I], chosen by
  the runs in docs/vt.md; each is an argument.
- VT works at stride 16 [P]. Its map is max-pooled to stride 32, which detectors expect of a
  ResNet's last map [I]; `pool_last=False` gives it as it is.
- The rates of drop path rise linearly over the blocks of ResNet and the VT modules [I].
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

from xvit_mm.checkpoints import VT_RESNET_NAMES
from xvit_mm.registry import MODELS

from ..layers import Stage, VTSettings
from ..layers.cache import sizes_are_symbolic
from ..layers.recorded_settings import EXTRA_STATE
from ..settings import (MOST_BLOCKS, check_choice, check_drop_path_rate, check_mapping,
                        check_numbers, drop_path_rates)
from .base import Backbone

# The paper's architecture table: blocks of layers 1 to 3, VT modules in place of layer 4, whether
# the blocks are bottlenecks. Rows 34 to 101 of it are partly [N].
_FIELDS = ('depths', 'num_modules', 'bottleneck')
# yapf: disable
VARIANTS = {depth: dict(zip(_FIELDS, row)) for depth, row in {
    #    blocks      VT  bottleneck
    18:  ((2, 2, 2),  2, False),
    34:  ((3, 4, 6),  3, False),
    50:  ((3, 4, 6),  3, True),
    101: ((3, 4, 23), 3, True),
}.items()}
# yapf: enable

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
        depth: 18, 34, 50 or 101.
        out_type: `featmap` or `tokens`, what the last stage gives.
        tokenizer: `filter`, `pooling` or `clustering` (Table 3).
        recurrent: whether modules after the first take the recurrent tokenizer (Table 4). Default:
            yes, except with `pooling`, where the published numbers say no [N].
        interaction: `transformer`, `graph` (a graph convolution) or `none` (Table 5).
        num_tokens: L, tokens per image (Table 6).
        with_projector: False tokenizes once and stacks transformers; tokens only (Table 7).
        num_modules: VT modules; default the variant's.
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
        in_channels: channels of the image.
        base_channels: of layer 1 before its expansion; the widths of all maps follow.
        resnet: further arguments of the ResNet, such as `dict(deep_stem=True)`, or its `type`:
            `dict(type='mmpretrain.ResNet_CIFAR')` has strides 1, 2, 4, 8, for small images.
        norm_cfg: of both parts; default `dict(type='BN')`.
        drop_path_rate: of the last VT module; the rates of the blocks before it fall linearly to 0
            at the first block of the ResNet. Above 0 it needs mmpretrain's ResNet.

    The other arguments, and the errors, are those of `Backbone`. The settings that a state dict
    does not show by itself, such as `scale_filters`, are saved with the weights.

    Raises:
        ImportError: there is no package to take the ResNet from.
        ValueError: a setting outside its range, or settings that exclude each other.
        CheckpointError: weights that were made with other settings.
    """

    variants = VARIANTS
    official_names = VT_RESNET_NAMES

    def __init__(
        self,
        depth: int = 18,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
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
        in_channels: int = 3,
        base_channels: int = 64,
        resnet: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] | None = None,
        drop_path_rate: float = 0.,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(
            num_stages=NUM_CONV_STAGES + 1, out_indices=out_indices, frozen_stages=frozen_stages,
            norm_eval=norm_eval, with_cp=with_cp, in_channels=in_channels, init_cfg=init_cfg,
            unknown=unknown)
        check_choice('depth', depth, tuple(VARIANTS))
        check_drop_path_rate(drop_path_rate)
        if num_modules is not None:
            check_numbers('num_modules', num_modules, most=MOST_BLOCKS)
        check_numbers('base_channels', base_channels)
        norm_cfg = norm_cfg or dict(type='BN')
        check_mapping('norm_cfg', norm_cfg)
        norm_cfg = dict(norm_cfg)
        if resnet is not None and not isinstance(resnet, Mapping):
            raise ValueError(f'resnet={resnet!r}: give a dict of arguments of the ResNet')
        self.depth, self.pool_last = depth, pool_last
        num_blocks = sum(VARIANTS[depth]['depths'])
        rates = drop_path_rates(
            drop_path_rate, num_blocks + (num_modules or VARIANTS[depth]['num_modules']))
        if scale_filters is None:
            scale_filters = tokenizer == 'filter'
        scales = dict(
            scale_filters=scale_filters, scale_recurrent=scale_recurrent,
            scale_transformer=scale_transformer, scale_projector=scale_projector)
        if scale_logits is not None:
            scales = dict.fromkeys(scales, scale_logits)
        self.settings = VTSettings(
            tokenizer=tokenizer, interaction=interaction, num_tokens=num_tokens,
            # Pooling in every module is what the numbers of its row in Table 3 say.
            recurrent=tokenizer != 'pooling' if recurrent is None else recurrent,
            with_projector=with_projector, token_channels=token_channels, num_heads=num_heads,
            value_conv=value_conv, **scales, query_gain=query_gain, zero_init=zero_init_residual,
            drop_path_rates=rates[num_blocks:], norm_cfg=norm_cfg if token_norm else None)
        self.out_type = self._checked_out_type(out_type)
        self.resnet = _build_resnet(
            resnet or {}, drop_path_rates=rates[:num_blocks], depth=depth,
            num_stages=min(self.num_stages, NUM_CONV_STAGES), in_channels=in_channels,
            base_channels=base_channels, stem_channels=base_channels, norm_cfg=norm_cfg,
            zero_init_residual=zero_init_residual)
        self._build_vt(base_channels)
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

    def _build_vt(self, base_channels: int) -> None:
        """The VT modules, and what they and the ResNet give out."""
        expansion = 4 if VARIANTS[self.depth]['bottleneck'] else 1
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
            x = net.maxpool(x)
        for layer in self._layers():
            maps.append(x := layer(x, self._run))
        return maps

    def _layers(self) -> list[nn.Module]:
        return [getattr(self.resnet, name) for name in self.resnet.res_layers]

    def _pooled(self, x: Tensor) -> Tensor:
        if not self.pool_last:
            return x
        if not sizes_are_symbolic():
            return F.max_pool2d(x, 2, ceil_mode=True)
        # Exporters fix whether ceil_mode rounds up, and that of torch 2.1 does not know it.
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float('-inf')), 2)

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


def _build_resnet(
    overrides: Mapping[str, Any],
    *,
    num_stages: int,
    drop_path_rates: Sequence[float],
    **settings: Any,
) -> nn.Module:
    """An installed ResNet without its last stage, whose layers are `ConvStage`."""
    settings |= dict(
        num_stages=num_stages, out_indices=tuple(range(num_stages)), strides=(1, 2, 2)[:num_stages],
        dilations=(1, 1, 1)[:num_stages], norm_eval=False)
    if fixed := sorted(set(overrides) & set(settings)):
        raise ValueError(
            f'resnet={dict(overrides)}: {", ".join(fixed)} cannot be set there; these follow from '
            'the arguments of VTResNet')
    kind = overrides.get('type') or _installed_resnet(with_drop_path=any(drop_path_rates))
    print_log(f'VTResNet takes its convolutional part from {kind}', logger='current')
    resnet = MODELS.build(settings | dict(overrides) | dict(type=kind))
    for name in resnet.res_layers:
        setattr(resnet, name, ConvStage(*getattr(resnet, name)))
    if any(drop_path_rates):
        blocks = [block for name in resnet.res_layers for block in getattr(resnet, name)]
        if not all(hasattr(block, 'drop_path') for block in blocks):
            raise ValueError(
                f'drop_path_rate={drop_path_rates[-1]:.3g} at the end of the ResNet: the blocks of '
                f'{kind} have no drop path. Take a ResNet of {" or ".join(WITH_DROP_PATH)}, or '
                'drop_path_rate=0')
        for block, rate in zip(blocks, drop_path_rates):
            block.drop_path = DropPath(rate)
    return resnet


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
