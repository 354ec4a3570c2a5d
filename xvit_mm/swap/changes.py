"""A config before and after the swap, and the reason for every change."""
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

_MISSING = object()


@dataclass
class Node:
    """An entry of the config to write: a value, or a dict of nodes; either with comments."""

    value: Any = None
    children: 'dict[str, Node] | None' = None
    # Whether a dict takes the place of what the base has, instead of being merged into it.
    replaces: bool = False
    comments: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, value: Any) -> 'Node':
        if isinstance(value, Mapping):
            return cls(children={key: cls.of(child) for key, child in value.items()})
        return cls(value=value)


class Changes:
    """A config, what it becomes, and why.

    Places are written with dots and, inside lists, numbers: `model.auxiliary_head.0.in_channels`.
    """

    def __init__(self, cfg: Config) -> None:
        self.old: dict[str, Any] = cfg.to_dict()
        self.new: dict[str, Any] = copy.deepcopy(self.old)
        self._reasons: list[tuple[str, str]] = []

    def get(self, place: str, default: Any = None) -> Any:
        """Return the present entry, or `default`."""
        return _look_up(self.new, place, default)

    def has(self, place: str) -> bool:
        return self.get(place, _MISSING) is not _MISSING

    def set(self, place: str, value: Any, why: str | None = None) -> None:
        """Change an entry, unless it has this value already."""
        if self.get(place, _MISSING) == value:
            return
        parent, _, key = place.rpartition('.')
        if parent and not isinstance(self.get(parent), (dict, list)):
            self.set(parent, {})
        node = self.get(parent) if parent else self.new
        node[int(key) if isinstance(node, list) else key] = copy.deepcopy(value)
        if why:
            self.explain(place, why)

    def explain(self, place: str, why: str) -> None:
        self._reasons.append((place, why))

    def tree(self) -> Node:
        """Return the changes, as a config that inherits from the old one states them."""
        root = _difference(self.old, self.new)
        # The model first, wherever the base has it.
        root.children = dict(sorted(root.children.items(), key=lambda item: item[0] != 'model'))
        for place, why in self._reasons:
            node = root
            for key in place.split('.'):
                # A list is written whole, so a reason within it is one of the list.
                node = (node.children or {}).get(key, node)
            if why not in node.comments:
                node.comments.append(why)
        return root


def _difference(old: dict[str, Any], new: dict[str, Any]) -> Node:
    root = Node(children={})
    for key, value in new.items():
        before = old.get(key, _MISSING)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict) and _extends(before, value):
            root.children[key] = _difference(before, value)
        else:
            root.children[key] = Node.of(value)
            root.children[key].replaces = isinstance(value, dict) and before is not _MISSING
    return root


def _extends(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether merging can turn one into the other: same type, nothing removed."""
    return old.get('type') == new.get('type') and not set(old) - set(new)


def _look_up(node: Any, place: str, default: Any) -> Any:
    for key in place.split('.'):
        if isinstance(node, dict) and key in node:
            node = node[key]
        elif isinstance(node, (list, tuple)) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            return default
    return node
