"""Caches of constants that follow from the weights or from the image size, and a switch that makes
models compute their formulas as written."""
import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar('T')
F = TypeVar('F', bound=Callable[..., Any])
_shortcuts = True


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """Compute formulas as they are written, which is how papers count their cost.

    `CrossAttention` is not affected: it skips projections always, also while training.
    """
    global _shortcuts
    before, _shortcuts = _shortcuts, False
    try:
        yield
    finally:
        _shortcuts = before


def shortcuts_allowed() -> bool:
    """Whether a formula may be replaced by a cheaper one with the same result."""
    return _shortcuts


class EvalCache(nn.Module):
    """Base of modules that derive constants, such as a position bias, from weights and sizes.

    `cached` keeps the last few of them in eval mode without gradients, and drops them when they
    could be out of date: on `train()` or `eval()`, on a call in training mode or with gradients, on
    a change of device or dtype, on loading, and if the weights are others than before or have been
    written to. Nothing is kept while tracing or compiling, and nothing is copied or saved with the
    module.
    Writes through `.data` that leave no trace are noticed on a CPU, where values are compared;
    elsewhere that would wait for the device: call `eval()` after them.
    """

    max_entries = 8
    _kept: '_Kept | None' = None

    def cached(
        self,
        key: Hashable,
        compute: Callable[[], T],
        weights: Iterable[Tensor] | None = None,
    ) -> T:
        """The value of `compute()` for `key`.

        `weights`: the parameters it depends on, by default all parameters of this module.
        """
        if sizes_are_symbolic() or not _shortcuts:
            return compute()
        if self.training or torch.is_grad_enabled():
            # An optimizer may write next, and not every optimizer raises the versions.
            self._kept = None
            return compute()
        weights = tuple(self.parameters() if weights is None else weights)
        if not _can_be_followed(weights):
            return compute()
        key = key, autocast_dtype(weights[0].device.type) if weights else None
        # Other threads may replace it meanwhile.
        kept = self._kept
        if kept is None or not kept.is_of(weights):
            kept = self._kept = _Kept(weights)
        return kept.get(key, compute, self.max_entries)

    def train(self, mode: bool = True) -> 'EvalCache':
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable, recurse: bool = True) -> 'EvalCache':
        self._kept = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_kept'}


class _Kept:
    """Constants that follow from certain weights, as these were when the first one was computed."""

    def __init__(self, weights: tuple[Tensor, ...]) -> None:
        # Held, so that no other tensor can take the place of one in memory.
        self._weights = weights
        self._marks = [_mark(weight) for weight in weights]
        self._values = _values(weights)
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()

    def is_of(self, weights: tuple[Tensor, ...]) -> bool:
        """Whether these are the weights, and nobody has written to them."""
        if len(weights) != len(self._weights) or not all(
                weight is kept and _mark(weight) == mark
                for weight, kept, mark in zip(weights, self._weights, self._marks)):
            return False
        values = _values(weights)
        return values is None or self._values is None or torch.equal(values, self._values)

    def get(self, key: Hashable, compute: Callable[[], T], max_entries: int) -> T:
        """The value of `compute()` for `key`."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = compute()
        with self._lock:
            self._entries[key] = value
            if len(self._entries) > max_entries:
                self._entries.popitem(last=False)
        return value


def _mark(weight: Tensor) -> tuple[int, int]:
    """What changes with most writes to a tensor, and if it gets another storage."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _values(weights: tuple[Tensor, ...]) -> Tensor | None:
    """All values in a row; None where comparing them would wait for a device."""
    if not weights or any(weight.device.type != 'cpu' for weight in weights):
        return None
    return torch.cat([weight.detach().flatten() for weight in weights])


def _can_be_followed(weights: Iterable[Tensor]) -> bool:
    """Whether writes to tensors can be noticed: not if they stand for others, as in `vmap`."""
    if type(torch.empty(0)) is not Tensor:
        return False
    return all(type(weight) in (Tensor, nn.Parameter) and not _is_wrapped(weight)
               for weight in weights)


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class Sized(Protocol):
    """A value that knows how many bytes its tensors have."""

    @property
    def nbytes(self) -> int: ...


S = TypeVar('S', bound=Sized)


class SizeCache(Generic[S]):
    """Index tables and other values that follow only from sizes, whatever the mode or the model.

    Holds at most `max_bytes`; what was not used for longest goes first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, S] = OrderedDict()
        # Threads share it, for example those of DataParallel.
        self._lock = Lock()

    def get(self, key: Hashable, compute: Callable[[], S]) -> S:
        """The value of `compute()` for `key`."""
        if type(torch.empty(0)) is not Tensor:
            # Under a mode that replaces tensors, such as FakeTensorMode.
            return compute()
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        # Autograd cannot save tensors that were made in inference mode.
        with torch.inference_mode(False):
            value = compute()
        with self._lock:
            self._entries[key] = value
            while self.nbytes > self.max_bytes and len(self._entries) > 1:
                self._entries.popitem(last=False)
        return value

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self._entries.values())


def sizes_are_symbolic() -> bool:
    """Whether the sizes of tensors may be symbols: while tracing, exporting or compiling."""
    return torch.jit.is_tracing() or is_compiling()


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is at work."""
    # torch before 2.3 has it in another place.
    public = hasattr(torch.compiler, 'is_compiling')
    return torch.compiler.is_compiling() if public else torch._dynamo.is_compiling()


def is_exporting() -> bool:
    """Whether torch.export is at work; not known before torch 2.7."""
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()


def opaque_to_compile(function: F, shapes: Callable[..., Any]) -> F:
    """A function that makes tables from sizes, as one operation in the graphs of torch.compile.

    Inductor would write every entry as a formula of the sizes, and simplify these for an hour.
    Exported programs keep the formulas, for they must run where this package is not installed.

    Args:
        function: from annotated sizes and a device to tensors.
        shapes: from the same to empty tensors of the same shapes and types.
    """
    if not hasattr(torch.compiler, 'is_exporting'):
        return function
    op = torch.library.custom_op(
        f'xvit_mm::{function.__name__.strip("_")}', function, mutates_args=())
    op.register_fake(shapes)

    @functools.wraps(function)
    def choose(*args: Any) -> Any:
        return op(*args) if is_compiling() and not is_exporting() else function(*args)

    return choose  # type: ignore[return-value]


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast computes in on a type of device; None while it is off."""
    if hasattr(torch, 'get_autocast_dtype'):
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if on else None
    # Before torch 2.4.
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
