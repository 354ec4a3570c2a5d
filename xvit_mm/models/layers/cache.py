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
    """Compute formulas as they are written, as papers count them.

    Not that of `CrossAttention`, which skips projections always, also while training.
    """
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

    `cached` remembers the last few of them in eval mode without gradients, and forgets them when
    they could be wrong: on `train()` or `eval()`, on a call in training mode or with gradients, on
    a change of device or of dtype, and on loading. While tracing or compilation are on it computes.
    A write into the weights between two calls in eval mode is noticed if it raises their versions,
    as all do but those through `.data` and in fused optimizers; call `eval()` after such a one.
    """

    max_entries = 8

    def __init__(self) -> None:
        super().__init__()
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `compute()` for `key`."""
        if torch.jit.is_tracing() or is_compiling() or not _shortcuts:
            return compute()
        if self.training or torch.is_grad_enabled():
            # An optimizer may write next, and not every one raises the versions.
            self._entries.clear()
            return compute()
        weights = list(self.parameters())
        versions = tuple(p._version for p in weights if not p.is_inference())
        dtype = _autocast_dtype(weights[0].device.type) if weights else None
        key = key, versions, dtype
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


def is_compiling() -> bool:
    """Whether torch.compile is at work."""
    # Until torch 2.3 it was to be asked elsewhere.
    public = hasattr(torch.compiler, 'is_compiling')
    return torch.compiler.is_compiling() if public else torch._dynamo.is_compiling()


def _autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes in on a type of device; None while it is off."""
    if hasattr(torch, 'get_autocast_dtype'):
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if on else None
    # Before torch 2.4.
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
