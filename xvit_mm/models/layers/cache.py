"""Bounded memory for what follows from the weights and the image size alone."""
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar('T')


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
        if self.training or torch.is_grad_enabled() or _in_graph_capture():
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
