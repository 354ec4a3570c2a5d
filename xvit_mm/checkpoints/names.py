"""Official names of tensors and the names here: tables and pure functions."""
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from torch import Tensor

StateDict = Mapping[str, Tensor]


def numbered_stage(name: str) -> int | None:
    """The stage of a tensor `stages.<number>.<...>`."""
    return int(name.split('.')[1]) if name.startswith('stages.') else None


def nothing(names: Collection[str]) -> set[str]:
    """None of the names."""
    return set()


class OfficialBackbone(Protocol):
    """What loading asks of a backbone.

    Attributes:
        official_names: how its tensors are called in official files.
        variants: the settings of its variants by name.
        num_stages: how many stages it builds.
    """

    official_names: 'OfficialNames'
    variants: Mapping[str, Any]
    num_stages: int

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""

    def fit_weights(self, state_dict: StateDict) -> StateDict:
        """Adapt weights of this variant to what this instance needs, such as the image size."""


@dataclass(frozen=True)
class Translation:
    """An official state dict in our names; every tensor of it is in exactly one of the parts.

    backbone: names relative to the backbone. head: names relative to our classification head.
    derived: official names of buffers that our code computes. replaced: official names of layers
    that our model has something else for. other: everything else.
    """

    backbone: dict[str, Tensor] = field(default_factory=dict)
    head: dict[str, Tensor] = field(default_factory=dict)
    derived: dict[str, Tensor] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)
    other: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class OfficialNames:
    """How an official code names its tensors, and how we do.

    signature: a name that every official state dict has, None if there is no official code.
    own_signature: its name here, or a name that every state dict of this package has.
    backbone, head: pairs of a pattern for a whole official name and our name, as in `re.sub`.
    derived: patterns of official buffers that need no loading.
    settings: what a state dict in our names tells about the variant, as entries of an arch.
    new: patterns of our names of tensors that no official file has.
    uncounted: patterns of our names of tensors that older files lack.
    of_outputs: those of the `new` names that depend on the outputs that a backbone returns.
    replaced: patterns of official layers that our model has something else for.
    stage: the stage that a name here belongs to, if any; later stages may not be built.
    """

    model: str
    signature: str | None
    own_signature: str
    settings: Callable[[StateDict], dict[str, Any]]
    backbone: tuple[tuple[str, str], ...] = ()
    head: tuple[tuple[str, str], ...] = ()
    derived: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    of_outputs: Callable[[Collection[str]], set[str]] = nothing
    replaced: tuple[str, ...] = ()
    stage: Callable[[str], int | None] = numbered_stage

    def is_new(self, name: str) -> bool:
        """Whether a tensor, in our names, is in no official file."""
        return matches(name, self.new)

    def optional(self, own: Collection[str], given: Collection[str]) -> set[str]:
        """The tensors that need not be both in a backbone, `own`, and in a file, `given`.

        All that are new, if one of the two has none of them; else those that outputs bring along.
        """
        names = {*own, *given}
        new = {name for name in names if self.is_new(name)}
        uncounted = {name for name in names if matches(name, self.uncounted)}
        both = not new.isdisjoint(own) and not new.isdisjoint(given)
        return uncounted | (self.of_outputs(new) if both else new)

    def translate(self, state_dict: StateDict) -> Translation:
        """Sort and rename the tensors of an official state dict that has no prefix."""
        result = Translation()
        for name, tensor in state_dict.items():
            if matches(name, self.derived):
                result.derived[name] = tensor
            elif matches(name, self.replaced):
                result.replaced[name] = tensor
            elif new := rename(name, self.backbone):
                result.backbone[new] = tensor
            elif new := rename(name, self.head):
                result.head[new] = tensor
            else:
                result.other[name] = tensor
        return result


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns matches the whole name."""
    return bool(patterns) and _any_of(patterns).fullmatch(name) is not None


def rename(name: str, table: tuple[tuple[str, str], ...]) -> str | None:
    """The new name by the first pattern that matches the whole of `name`; None without one."""
    # Names of another model mostly match nothing, which one pattern made of all tells fast.
    if not table or not _any_of(_patterns(table)).fullmatch(name):
        return None
    for pattern, replacement in table:
        new, count = re.subn(rf'\A(?:{pattern})\Z', replacement, name)
        if count:
            return new
    return None


@cache
def _patterns(table: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(pattern for pattern, _ in table)


@cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile('|'.join(f'(?:{pattern})' for pattern in patterns))


def find_prefix(
    state_dict: Mapping[str, Any], signature: str | None, within: str = ''
) -> str | None:
    """The shortest prefix under which the signature stands, at or below the prefix `within`.

    Official files put backbones under nothing, `module.`, `backbone.` and combinations.
    """
    if signature is None:
        return None
    found = [
        name.removesuffix(signature) for name in state_dict
        if name.startswith(within) and name.endswith(signature)
        and (name == signature or name[:-len(signature)].endswith('.'))
    ]
    return min(found, key=len, default=None)


def without_prefix(state_dict: StateDict, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, named without it."""
    return {n[len(prefix):]: t for n, t in state_dict.items() if n.startswith(prefix)}
