"""Shortcuts to what formulas give: bounded memory for what follows from the weights and the image
size alone, and a way to do without."""
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar('T')
_shortcuts = True


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """Compute every formula as it is written, as papers count it."""
    global _shortcuts
    before, _shortcuts = _shortcuts, False
    try:
        yield
    finally:
        _shortcuts = before


def shortcuts_allowed() -> bool:
    """Whether a formula may be computed in another way that gives the same."""
    return _shortcuts


class EvalCache(nn.Module):
    """Base of modules that derive constants, such as a position bias, from weights and sizes.

    `cached` remembers the last few of them in eval mode without gradients, and forgets them as
    soon as they could be wrong: on `train()` or `eval()`, on a change of the weights in place, of
    device or of dtype, and on loading. While gradients, tracing or compilation are on it computes.
    """

    max_entries = 8

    def __init__(self) -> None:
        super().__init__()
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `compute()` for `key`."""
        if self.training or torch.is_grad_enabled() or _in_graph_capture() or not _shortcuts:
            return compute()
        # Optimizers and EMA write in place; every such write raises a parameter's version.
        key = key, tuple(p._version for p in self.parameters() if not p.is_inference())
        if key not in self._entries:
            self._entries[key] = compute()
            if len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)
        self._entries.move_to_end(key)
        return self._entries[key]

    def train(self, mode: bool = True) -> 'EvalCache':
        self._entries.clear()
        return super().train(mode)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'EvalCache':
        self._entries.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._entries.clear()
        super()._load_from_state_dict(*args, **kwargs)


def _in_graph_capture() -> bool:
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
