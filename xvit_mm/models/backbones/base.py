"""What every backbone of this package promises, written once."""
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any, ClassVar, TypedDict, TypeVar

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from xvit_mm.checkpoints import OfficialNames, load_official, translate

from ..layers.cache import is_compiling
from ..settings import check_numbers


class CommonArguments(TypedDict, total=False):
    """Keyword arguments of every backbone; `Backbone` describes them and has their defaults."""

    in_channels: int
    frozen_stages: int
    norm_eval: bool
    with_cp: bool
    init_cfg: dict | list[dict] | None


Init = TypeVar('Init', bound=Callable[..., None])


def accepts_common_arguments(init: Init) -> Init:
    """Write the common arguments out in the signature of a constructor that ends in `**common`.

    For `help`, editors, and the error for an unknown argument.
    """
    *own, _ = inspect.signature(init).parameters.values()
    defaults = inspect.signature(Backbone.__init__).parameters
    common = [defaults[name] for name in CommonArguments.__annotations__]
    vars(init)['__signature__'] = inspect.Signature([*own, *common])
    return init


class Backbone(BaseModule):
    """Base of the backbones: a module from images [B, 3, H, W] to a tuple of maps.

    The maps are [B, C, H', W'], high to low resolution, one for each entry of `out_indices`, with
    C and stride in `out_channels` and `out_strides`; H' is H divided by the stride, rounded up.

    A subclass sets `variants`, `default_arch` and `official_names`, calls `super().__init__`,
    builds its modules, sets `out_channels` and `out_strides`, and calls `self._freeze()` last.

    Args:
        num_stages: how many stages there are.
        out_indices: which stages to return, ascending; later stages are not built.
        num_maps: how many maps there are to choose from, if they are not one per stage; all stages
            are built then.
        in_channels: channels of the image.
        frozen_stages: -1 nothing; 0 the stem; n the stem and the first n stages. Frozen parts do
            not train and stay in eval mode.
        norm_eval: keep BatchNorm in eval mode while training.
        with_cp: recompute blocks in the backward pass instead of keeping their activations.
        init_cfg: as in mmengine, default the class's. `dict(type='Pretrained', checkpoint=...)`
            takes official files.

    Raises:
        TypeError: an argument that the backbone does not have, such as a leftover of another one.
        ValueError: `out_indices` or `frozen_stages` out of range.
    """

    variants: ClassVar[Mapping[str, Any]] = {}
    default_arch: ClassVar[str] = ''
    official_names: ClassVar[OfficialNames | None] = None
    default_init_cfg: ClassVar[list[dict] | None] = None
    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]
    init_cfg: dict | list[dict] | None

    def __init__(
        self,
        num_stages: int,
        out_indices: Sequence[int],
        num_maps: int | None = None,
        /,  # so that leftovers of another backbone may have these names
        *,
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise TypeError(self._unknown_arguments(unknown))
        check_numbers('in_channels', in_channels)
        check_numbers('frozen_stages', frozen_stages, least=-1)
        super().__init__(self.default_init_cfg if init_cfg is None else init_cfg)
        self.out_indices = _checked_out_indices(out_indices, num_maps or num_stages)
        self.num_stages = num_stages if num_maps else self.out_indices[-1] + 1
        if not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(
                f'frozen_stages={frozen_stages}: allowed are -1 (nothing), 0 (the stem) and up to '
                f'{self.num_stages}, the stages that out_indices={self.out_indices} builds')
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    @abstractmethod
    def frozen_parts(self, frozen_stages: int) -> list[nn.Module]:
        """The modules that `frozen_stages` (0 or more) freezes."""

    @abstractmethod
    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning rates: (its layer, number of layers).

        Layer 0 is the stem; the last layer is whatever comes after the backbone's blocks.
        """

    @classmethod
    def variant(cls, arch: str | Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `arch`: a variant's name, or a dict of what differs from the default one.

        Raises:
            ValueError: no variant has this name, or no variant has these settings.
        """
        differing = arch if isinstance(arch, Mapping) else {}
        name = cls.default_arch if isinstance(arch, Mapping) else arch
        if isinstance(name, int):  # what --cfg-options makes of a name such as 15
            name = str(name)
        if not isinstance(name, str) or name not in cls.variants:
            raise ValueError(
                f'{cls.__name__} has no arch {arch!r}; choose from '
                f'{", ".join(map(repr, cls.variants))}, or give a dict of what differs from '
                f'{cls.default_arch!r}')
        settings = dict(cls.variants[name])
        if unknown := sorted(set(differing) - set(settings)):
            raise ValueError(f'arch has unknown entries {unknown}; known are {sorted(settings)}')
        return settings | dict(differing)

    def fit_weights(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of this variant, in our names, as this instance needs them.

        For what depends only on the image size, such as position embeddings; nothing by default.
        """
        return state_dict

    def init_weights(self) -> None:
        """Initialise as `init_cfg` says; a pretrained file must cover the whole backbone.

        Raises:
            CheckpointError: the file does not fit; says what it is and what this backbone is.
        """
        init_cfg, first = self.init_cfg, not self.is_init
        entries = [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []
        # As in mmengine, files come last; its own loading does not ask whether they cover all.
        self.init_cfg = [entry for entry in entries if not _is_pretrained(entry)]
        try:
            super().init_weights()
        finally:
            self.init_cfg = init_cfg
        for entry in filter(_is_pretrained, entries if first else ()):
            report = load_official(self, entry['checkpoint'], prefix=entry.get('prefix') or None)
            print_log(str(report), logger='current')

    def train(self, mode: bool = True) -> 'Backbone':
        """Set the mode, except of what is frozen."""
        super().train(mode)
        if mode:
            self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for part in self.frozen_parts(self.frozen_stages):
                part.eval().requires_grad_(False)
        if self.norm_eval and self.training:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Call a block, with activation checkpointing if that is on and pays."""
        if self.with_cp and self.training:
            # A compiled graph writes BatchNorm's statistics once, and takes no context.
            contexts: dict[str, Any] = {} if is_compiling() else dict(
                context_fn=lambda: (nullcontext(), _statistics_kept(block)))
            return checkpoint(block, *inputs, use_reentrant=False, **contexts)
        return block(*inputs)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Official names are understood however torch or mmengine loads them. In a model that holds
        # this backbone they must be under its prefix; bare ones come here with `load_official`.
        if self.official_names is not None:
            translate(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _unknown_arguments(self, unknown: Mapping[str, Any]) -> str:
        known = list(inspect.signature(type(self)).parameters)
        close = {name: get_close_matches(name, known, n=1) for name in unknown}
        meant = ''.join(f' Did you mean {m[0]!r} for {n!r}?' for n, m in close.items() if m)
        return (
            f'{type(self).__name__} has no argument {", ".join(map(repr, unknown))}.{meant} '
            f'It takes {", ".join(known)}. If a config inherits from one with another backbone, '
            f"write backbone=dict(_delete_=True, type='xvit_mm.{type(self).__name__}', ...), so "
            'that the arguments of the other one go.')


def _checked_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    in_range = all(i in range(num_stages) for i in indices)
    if not indices or not in_range or list(indices) != sorted(set(indices)):
        raise ValueError(
            f'out_indices={out_indices!r}: give ascending stage numbers from 0 to {num_stages - 1}')
    return indices


def _is_pretrained(entry: Mapping[str, Any]) -> bool:
    kind = entry['type']
    names = ('Pretrained', 'PretrainedInit')
    return kind is PretrainedInit or isinstance(kind, str) and kind.split('.')[-1] in names


@contextmanager
def _statistics_kept(block: Callable) -> Iterator[None]:
    """Keep BatchNorm from counting a batch twice while a block is computed a second time."""
    modules = block.modules() if isinstance(block, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, batches) in zip(norms, states):
        assert batches is not None
        norm.momentum, norm.num_batches_tracked = 0., batches.clone()
    try:
        yield
    finally:
        for norm, state in zip(norms, states):
            norm.momentum, norm.num_batches_tracked = state
