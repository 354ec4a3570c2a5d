"""VT-ResNet: ResNets whose last stage is visual tokens (arXiv 2006.03677 v4, ICCV 2021).

    images -> ResNet stem, layers 1 to 3 -> [tokenizer -> transformer -> projector] x 2 or 3

The last stage relates 16 tokens where ResNet convolves a map. The first VT module finds its tokens
with learned filters, the later ones with the tokens of the module before. A classifier reads the
tokens; detectors and segmentors read the maps, the last of which the projectors write.

There is no official code. The structure is the one that gives the published numbers of parameters
and multiply-adds of Tables 2 to 7 (see `layers/visual_tokens.py`, with the meaning of the tags).
What we decided beyond it:
- The last module has no projector if only its tokens are used [N], and one for maps [I].
- A norm after every layer of the VT modules, logits divided by sqrt(d), one head, residual branches
  that do not start at zero [I]; all four are arguments. Queries start small [I].
- VT works at stride 16 [P]. Its map is max-pooled to stride 32, which detectors expect of a
  ResNet's last map [I]; `pool_last=False` gives it as it is.
"""
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvit_mm.checkpoints import VT_RESNET_NAMES
from xvit_mm.registry import MODELS

from ..layers import TOKENIZERS, PointwiseTokens, Projector, TokenTransformer
from ..settings import check_choice, check_drop_path_rate, drop_path_rates
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

# Where a ResNet may come from; they agree in structure and in the names of their tensors.
PACKAGES = ('mmdet', 'mmpretrain', 'mmseg')
NUM_CONV_STAGES = 3
# Attention that is narrow from the start slows training from scratch (measured in docs/vt.md).
QUERY_GAIN = 0.1


class VTModule(nn.Module):
    """Tokenizer, transformer, projector: a map and earlier tokens to a map and new tokens.

    x [B, C_in, H, W], tokens [B, CT, L] or None to [B, C_out, H, W], [B, CT, L]. Without a
    tokenizer the earlier tokens are used on; without a projector the map stays as it is.
    """

    def __init__(
        self, tokenizer: nn.Module | None, transformer: nn.Module, projector: nn.Module | None
    ) -> None:
        super().__init__()
        self.tokenizer, self.transformer, self.projector = tokenizer, transformer, projector

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.tokenizer is not None:
            tokens = self.tokenizer(x, tokens)
        tokens = self.transformer(tokens)
        if self.projector is not None:
            x = self.projector(x, tokens)
        return x, tokens


@dataclass(frozen=True, kw_only=True)
class VTSettings:
    """What the VT modules of a stage have in common; the fields are arguments of `VTResNet`."""

    tokenizer: str
    recurrent: bool | None
    interaction: str
    num_tokens: int
    with_projector: bool
    num_modules: int
    token_channels: int
    num_heads: int
    value_conv: bool
    scale_logits: bool
    zero_init: bool
    drop_path_rate: float
    norm_cfg: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        check_choice('tokenizer', self.tokenizer, ('filter', 'pooling', 'clustering'))
        check_choice('interaction', self.interaction, ('transformer', 'none'))
        if min(self.num_tokens, self.num_modules, self.num_heads) < 1:
            raise ValueError(
                f'num_tokens={self.num_tokens}, num_modules={self.num_modules}, num_heads='
                f'{self.num_heads}: all must be at least 1')
        check_drop_path_rate(self.drop_path_rate)

    def build(self, in_channels: int, out_channels: int, *, map_output: bool) -> nn.ModuleList:
        """The modules of a stage; the first projector widens the map.

        Without `map_output` the last module has no projector: its map would not be used.
        """
        modules = nn.ModuleList()
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, self.num_modules)):
            projects = self.with_projector and (map_output or i < self.num_modules - 1)
            modules.append(VTModule(
                self._tokenizer(i, in_channels), self._transformer(rate),
                self._projector(in_channels, out_channels, rate) if projects else None))
            in_channels = out_channels
        return modules

    def _tokenizer(self, index: int, in_channels: int) -> nn.Module | None:
        if index and not self.with_projector:
            return None
        # Pooling in every module is what the numbers of its row in Table 3 say.
        recurrent = self.tokenizer != 'pooling' if self.recurrent is None else self.recurrent
        return TOKENIZERS['recurrent' if index and recurrent else self.tokenizer](
            in_channels, self.token_channels, num_tokens=self.num_tokens,
            value_conv=self.value_conv, scale_logits=self.scale_logits, query_gain=QUERY_GAIN,
            norm_cfg=self.norm_cfg)

    def _transformer(self, drop_path: float) -> nn.Module:
        common = dict(norm_cfg=self.norm_cfg, drop_path=drop_path)
        if self.interaction == 'none':
            return PointwiseTokens(self.token_channels, **common)
        return TokenTransformer(
            self.token_channels, num_heads=self.num_heads, scale_logits=self.scale_logits,
            query_gain=QUERY_GAIN, zero_init=self.zero_init, **common)

    def _projector(self, in_channels: int, out_channels: int, drop_path: float) -> nn.Module:
        return Projector(
            in_channels, out_channels, self.token_channels, num_heads=self.num_heads,
            scale_logits=self.scale_logits, query_gain=QUERY_GAIN, zero_init=self.zero_init,
            norm_cfg=self.norm_cfg, drop_path=drop_path)


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
        interaction: `transformer` or `none` (Table 5).
        num_tokens: L, tokens per image (Table 6).
        with_projector: False tokenizes once and stacks transformers; tokens only (Table 7).
        num_modules: VT modules; default the variant's.
        token_channels: CT.
        num_heads: of transformers and projectors.
        value_conv: False leaves the grouped projection out of the tokenizers, as in the formula.
        scale_logits: divide logits by sqrt(d).
        token_norm: norms in the VT modules; False as in the formulas.
        zero_init_residual: residual branches that end in a norm start at zero, in both parts; in
            short trainings from scratch they hardly leave it.
        pool_last: max-pool the last map to stride 32; else it has the stride 16 of VT.
        in_channels: channels of the image.
        base_channels: of layer 1 before its expansion; the widths of all maps follow.
        resnet: further arguments of the ResNet, such as `dict(deep_stem=True)`, or its `type`:
            `dict(type='mmpretrain.ResNet_CIFAR')` has strides 1, 2, 4, 8, for small images.
        norm_cfg: of both parts; default `dict(type='BN')`.
        drop_path_rate: of the residual branches of the last VT module, falling linearly to 0 at
            the first. The convolutional blocks have none, unless `resnet` says so.

    The other arguments, and the errors, are those of `Backbone`.

    Raises:
        ImportError: there is no package to take the ResNet from.
        ValueError: a setting outside its range, or settings that exclude each other.
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
        scale_logits: bool = True,
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
            norm_eval=norm_eval, with_cp=with_cp, init_cfg=init_cfg, unknown=unknown)
        check_choice('depth', depth, tuple(VARIANTS))
        norm_cfg = dict(norm_cfg or dict(type='BN'))
        self.depth, self.pool_last = depth, pool_last
        self.settings = VTSettings(
            tokenizer=tokenizer, recurrent=recurrent, interaction=interaction,
            num_tokens=num_tokens, with_projector=with_projector,
            num_modules=VARIANTS[depth]['num_modules'] if num_modules is None else num_modules,
            token_channels=token_channels, num_heads=num_heads, value_conv=value_conv,
            scale_logits=scale_logits, zero_init=zero_init_residual,
            drop_path_rate=drop_path_rate, norm_cfg=norm_cfg if token_norm else None)
        self.out_type = self._checked_out_type(out_type)
        self.resnet = _build_resnet(
            resnet or {}, depth=depth, num_stages=min(self.num_stages, NUM_CONV_STAGES),
            in_channels=in_channels, base_channels=base_channels, stem_channels=base_channels,
            norm_cfg=norm_cfg, zero_init_residual=zero_init_residual)
        self._build_vt(base_channels)
        self._freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self._conv_maps(x)
        if self.vt:
            x, tokens = maps[-1], None
            for module in self.vt:
                x, tokens = self._run(module, x, tokens)
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
        x, tokens, attentions = self._conv_maps(x)[-1], None, []
        for module in self.vt:
            if module.tokenizer is not None:
                attention = module.tokenizer.attention(x, tokens)
                attentions.append(attention.unflatten(2, x.shape[2:]))
            x, tokens = module(x, tokens)
        return attentions

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
            for block in layer:
                x = self._run(block, x)
            maps.append(x)
        return maps

    def _layers(self) -> list[nn.Module]:
        return [getattr(self.resnet, name) for name in self.resnet.res_layers]

    def _pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, ceil_mode=True) if self.pool_last else x

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


def _build_resnet(overrides: Mapping[str, Any], *, num_stages: int, **settings: Any) -> nn.Module:
    """The installed ResNet without its last stage."""
    settings |= dict(
        num_stages=num_stages, out_indices=tuple(range(num_stages)), strides=(1, 2, 2)[:num_stages],
        dilations=(1, 1, 1)[:num_stages], norm_eval=False)
    if fixed := sorted(set(overrides) & set(settings)):
        raise ValueError(
            f'resnet={dict(overrides)}: {", ".join(fixed)} cannot be set there; these follow from '
            'the arguments of VTResNet')
    kind = dict() if 'type' in overrides else dict(type=_resnet_type())
    return MODELS.build(settings | kind | dict(overrides))


def _resnet_type() -> str:
    """The name of a ResNet; packages that are in use already come first."""
    installed = [package for package in PACKAGES if find_spec(package)]
    if not installed:
        raise ImportError(
            f'VTResNet takes its convolutional part from the ResNet of {", ".join(PACKAGES)}, and '
            'none of them is installed. Install the one that you work with, for instance '
            '`pip install onedl-mmdetection`, or `mmdet` on the upstream stack')
    return f'{next((p for p in installed if f"{p}.models" in sys.modules), installed[0])}.ResNet'
