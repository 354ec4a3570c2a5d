"""The VT stage of VT-ResNet: modules of tokenizer, transformer and projector in a row.

    map ----+-------------> projector -> map ----+-------------> projector -> map
            |                   ^                |                   ^
            +-> tokenizer -> transformer ------> tokenizer -> transformer ---> tokens
"""
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn

from ..settings import check_choice, check_numbers
from .recorded_settings import RecordsSettings
from .stage import Run, call
from .visual_tokens import (TOKENIZERS, GraphConvolution, PointwiseTokens, Projector, Tokenizer,
                            TokenTransformer)

# The settings that no tensor's name or shape tells.
RECORDED = ('tokenizer', 'recurrent', 'interaction', 'num_tokens', 'num_heads', 'scale_filters',
            'scale_recurrent', 'scale_transformer', 'scale_projector')


class VTModule(nn.Module):
    """Tokenizer, transformer, projector: a map and earlier tokens to a map and new tokens.

    x [B, C_in, H, W], tokens [B, CT, L] or None to [B, C_out, H, W], [B, CT, L]. Without a
    tokenizer the earlier tokens are used again; without a projector the map stays as it is.
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


class VTStage(RecordsSettings, nn.ModuleList):
    """VT modules in a row: a map [B, C_in, H, W] to a map [B, C_out, H, W] and tokens [B, CT, L].

    What the weights were made with is saved beside them, see `RecordsSettings`.
    """

    def __init__(self, modules: Sequence[VTModule], recorded: Mapping[str, Any]) -> None:
        super().__init__(modules)
        self.recorded = dict(recorded)

    def forward(self, x: Tensor, run: Run = call) -> tuple[Tensor, Tensor]:
        tokens: Tensor | None = None
        for module in self:
            x, tokens = run(module, x, tokens)
        assert tokens is not None, 'a VT stage has modules'
        return x, tokens

    def token_attention(self, x: Tensor) -> list[Tensor]:
        """The weights [B, L, H, W] that the tokens of each module with a tokenizer are made with.

        Raises:
            ValueError: the tokens are pooled.
        """
        tokens, attentions = None, []
        for module in self:
            tokenizer = cast(VTModule, module).tokenizer
            if tokenizer is not None:
                attention = cast(Tokenizer, tokenizer).attention(x, tokens)
                attentions.append(attention.unflatten(2, x.shape[2:]))
            x, tokens = module(x, tokens)
        return attentions


@dataclass(frozen=True, kw_only=True)
class VTSettings:
    """What the modules of a VT stage have in common; see the arguments of `VTResNet`.

    `drop_path_rates` has one rate per module.

    Raises:
        ValueError: a setting outside its range.
    """

    tokenizer: str
    recurrent: bool
    interaction: str
    num_tokens: int
    with_projector: bool
    token_channels: int
    num_heads: int
    value_conv: bool
    scale_filters: bool
    scale_recurrent: bool
    scale_transformer: bool
    scale_projector: bool
    query_gain: float
    zero_init: bool
    drop_path_rates: Sequence[float]
    norm_cfg: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        check_choice('tokenizer', self.tokenizer, ('filter', 'pooling', 'clustering'))
        check_choice('interaction', self.interaction, ('transformer', 'graph', 'none'))
        for name in ('num_tokens', 'num_heads', 'token_channels'):
            check_numbers(name, getattr(self, name))
        check_numbers('query_gain', self.query_gain, least=1e-6, whole=False)

    def build(self, in_channels: int, out_channels: int, *, map_output: bool) -> VTStage:
        """The stage; the first projector takes the map from C_in to C_out channels.

        Without `map_output` the last module has no projector, as nobody reads its map.
        """
        modules = []
        for i, rate in enumerate(self.drop_path_rates):
            last = i == len(self.drop_path_rates) - 1
            projects = self.with_projector and (map_output or not last)
            modules.append(VTModule(
                self._tokenizer(in_channels, first=i == 0), self._transformer(rate),
                self._projector(in_channels, out_channels, rate) if projects else None))
            in_channels = out_channels
        return VTStage(modules, {name: asdict(self)[name] for name in RECORDED})

    def _tokenizer(self, in_channels: int, *, first: bool) -> nn.Module | None:
        if not first and not self.with_projector:
            return None
        kind = 'recurrent' if self.recurrent and not first else self.tokenizer
        return TOKENIZERS[kind](
            in_channels, self.token_channels, num_tokens=self.num_tokens,
            value_conv=self.value_conv, query_gain=self.query_gain, norm_cfg=self.norm_cfg,
            scale_logits=self.scale_recurrent if kind == 'recurrent' else self.scale_filters)

    def _transformer(self, drop_path: float) -> nn.Module:
        common: dict[str, Any] = dict(norm_cfg=self.norm_cfg, drop_path=drop_path)
        if self.interaction == 'none':
            return PointwiseTokens(self.token_channels, **common)
        if self.interaction == 'graph':
            return GraphConvolution(self.token_channels, num_tokens=self.num_tokens, **common)
        return TokenTransformer(
            self.token_channels, num_heads=self.num_heads, scale_logits=self.scale_transformer,
            query_gain=self.query_gain, zero_init=self.zero_init, **common)

    def _projector(self, in_channels: int, out_channels: int, drop_path: float) -> nn.Module:
        return Projector(
            in_channels, out_channels, self.token_channels, num_heads=self.num_heads,
            scale_logits=self.scale_projector, query_gain=self.query_gain,
            zero_init=self.zero_init, norm_cfg=self.norm_cfg, drop_path=drop_path)
