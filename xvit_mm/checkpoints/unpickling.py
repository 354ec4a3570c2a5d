"""An unpickler that restores tensors and plain values, and calls nothing else.

`torch.load` takes it as its `pickle_module`, in every version and for both of its file formats.
Three rules make it safe for files from strangers:

- A name in a file stands for an entry of `_RESTORED`, or for `Placeholder`. Nothing is imported.
- The entries are harmless with any arguments. Where torch's or numpy's own function would trust
  the file, as with the state of a `numpy.dtype`, ours checks or ignores it.
- State is set on instances of the types in `_STATE_SETTERS` only, never on classes or functions.
"""
import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


class ForbiddenCall(pickle.UnpicklingError):
    """A file calls what no checkpoint needs, such as `os.system`. It was not called."""

    def __init__(self, name: str) -> None:
        super().__init__(f'it calls {name}')
        self.name = name


class Placeholder(dict):
    """Stands for an object that is not restored; of a mapping it keeps the items."""

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Placeholder':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(next((arg for arg in args if isinstance(arg, dict)), ()))

    # What pickle fills lists and sets with.
    def append(self, item: Any) -> None:
        """Ignore an item of a list."""

    def extend(self, items: Any) -> None:
        """Ignore items of a list."""

    def add(self, item: Any) -> None:
        """Ignore an item of a set."""

    # Objects of other classes may be keys.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


class Unpickler(pickle._Unpickler):
    """The unpickler of the standard library in Python, where setting state can be overridden."""

    dispatch: ClassVar[Any] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    record_sizes: Mapping[str, int] | None = None

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for."""
        # The names of Python 2, which protocol 2 writes, and of numpy 2.
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        module = re.sub(r'^numpy\._core\b', 'numpy.core', module)
        full_name = f'{module}.{name}'
        if module.split('.')[0] in _FORBIDDEN_MODULES or full_name in _FORBIDDEN_NAMES:
            raise ForbiddenCall(full_name)
        if full_name in _RESTORED:
            return _RESTORED[full_name]
        value = vars(torch).get(name) if module == 'torch' else None
        return value if isinstance(value, _TORCH_CONSTANTS) else Placeholder

    def load_build(self) -> None:
        """Set the state of the last object but one; the last is the state."""
        state = self.stack.pop()
        instance = self.stack[-1]
        for kind, set_state in _STATE_SETTERS.items():
            if isinstance(instance, kind):
                set_state(instance, state)
                return
        raise pickle.UnpicklingError(f'it sets the state of a {type(instance).__name__}')

    def load_binpersid(self) -> None:
        """Have torch read a storage, of no more bytes than the file has for it.

        torch 2.1 reads as many as it is told to, even beyond the end of its memory.
        """
        kind, storage_type, key, _, count, *_ = self.stack[-1]
        if kind not in ('storage', b'storage'):
            raise pickle.UnpicklingError(f'it has a {kind!r} where only tensors may be')
        if self.record_sizes is not None:
            dtype = torch.uint8 if storage_type is torch.UntypedStorage else storage_type.dtype
            if not 0 <= count * dtype.itemsize <= self.record_sizes.get(f'data/{key}', 0):
                raise pickle.UnpicklingError(f'its tensor {key} has fewer values than it says')
        load: Any = pickle._Unpickler.dispatch[pickle.BINPERSID[0]]
        load(self)

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid


def pickle_module(record_sizes: Mapping[str, int] | None = None) -> Any:
    """What `torch.load` takes as `pickle_module`.

    Args:
        record_sizes: bytes by record of a file in zip format, where it is one.
    """
    unpickler = type('Unpickler', (Unpickler,), dict(record_sizes=record_sizes))
    return SimpleNamespace(
        __name__=__name__, Unpickler=unpickler,
        load=lambda file, **options: unpickler(file, **options).load())


def _rebuild_tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, requires_grad: bool = False, *_: Any
) -> torch.Tensor:
    # The hooks for the backward pass that follow in the file are left out.
    return torch._utils._rebuild_tensor_v2(
        storage, offset, size, stride, requires_grad, OrderedDict())


def _rebuild_tensor_of_dtype(
    storage: Any, offset: int, size: tuple, stride: tuple, requires_grad: bool, _: Any,
    dtype: torch.dtype, *__: Any
) -> torch.Tensor:
    return torch._utils._rebuild_tensor_v3(
        storage, offset, size, stride, requires_grad, OrderedDict(), dtype)


def _rebuild_quantized_tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, quantizer: tuple, *_: Any
) -> torch.Tensor:
    return torch._utils._rebuild_qtensor(
        storage, offset, size, stride, quantizer, False, OrderedDict())


def _rebuild_parameter(data: torch.Tensor, requires_grad: bool, *_: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, requires_grad)


def _rebuild_of_type(rebuild: Callable, kind: Any, arguments: tuple, *_: Any) -> Any:
    """A tensor of a subclass, or with attributes, as a plain tensor."""
    return rebuild(*arguments)


def _default_dict(factory: Any = None, *items: Any) -> defaultdict:
    return defaultdict(factory if factory in (int, float, list, dict, set) else None, *items)


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """Protocol 2 writes bytes as text and this call; other encodings would be looked up."""
    return text.encode('latin1')


def _bytearray(content: Any = b'', encoding: str = 'latin1') -> bytearray:
    return bytearray(content.encode('latin1') if isinstance(content, str) else bytes(content))


def _dtype(code: Any, *_: Any) -> np.dtype:
    """A type of numbers or characters: of others the state, or bytes, may hold pointers."""
    dtype = np.dtype(code, copy=True) if isinstance(code, str) else None  # type: ignore
    if dtype is None or dtype.kind not in 'biufcSU' or dtype.hasobject:
        raise pickle.UnpicklingError(f'it has values of the type {code!r}')
    return dtype


def _scalar(dtype: np.dtype, content: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise pickle.UnpicklingError('it has a damaged number')
    return np.frombuffer(content, dtype)[0]


def _empty_array(*_: Any) -> np.ndarray:
    """The content comes as the state."""
    return np.empty(0, np.uint8)


def _array_from_buffer(content: Any, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    """An array as protocol 5 writes it."""
    return np.frombuffer(bytearray(content), dtype).reshape(shape, order=order)  # type: ignore


def _set_array(array: np.ndarray, state: tuple) -> None:
    *_, dtype, is_fortran, content = state
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise pickle.UnpicklingError('it has a damaged array')
    array.__setstate__(state)  # type: ignore[attr-defined]


def _set_byte_order(dtype: np.dtype, state: tuple) -> None:
    """Of the state of a type only the byte order is taken: flags and fields are dangerous."""
    version, _, *own = dtype.__reduce__()[2]  # type: ignore
    if state[1] not in ('<', '>', '|', '='):
        raise pickle.UnpicklingError(f'it has a type of the byte order {state[1]!r}')
    dtype.__setstate__((version, state[1], *own))  # type: ignore[attr-defined]


def _set_versions(state_dict: OrderedDict, state: Mapping[str, Any]) -> None:
    """The versions of the modules, which `nn.Module.state_dict` attaches to its result."""
    if isinstance(state, dict) and isinstance(state.get('_metadata'), dict):
        state_dict._metadata = state['_metadata']  # type: ignore[attr-defined]


def _set_history(history: HistoryBuffer, state: Mapping[str, Any]) -> None:
    own = HistoryBuffer()
    for name in vars(own):
        value = state.get(name, getattr(own, name))
        if type(value) is not type(getattr(own, name)):
            raise pickle.UnpicklingError(f'it has a history with {name} of {type(value).__name__}')
        setattr(history, name, value)


def _ignore_state(instance: Any, state: Any) -> None:
    """Placeholders have no attributes."""


_STATE_SETTERS: dict[type, Callable[[Any, Any], None]] = {
    Placeholder: _ignore_state,
    OrderedDict: _set_versions,
    HistoryBuffer: _set_history,
    np.ndarray: _set_array,
    np.dtype: _set_byte_order,
}

_TORCH_CONSTANTS = (torch.dtype, torch.layout, torch.qscheme)
_RESTORED: dict[str, Any] = {
    **{f'builtins.{kind.__name__}': kind for kind in (
        bool, complex, dict, float, frozenset, int, list, object, set, slice, str, tuple)},
    'builtins.bytearray': _bytearray,
    'builtins.bytes': bytes,
    '_codecs.encode': _encode,
    'collections.Counter': Counter,
    'collections.OrderedDict': OrderedDict,
    'collections.defaultdict': _default_dict,
    'collections.deque': deque,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'numpy.dtype': _dtype,
    'numpy.ndarray': np.ndarray,
    'numpy.core.multiarray._reconstruct': _empty_array,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy.core.numeric._frombuffer': _array_from_buffer,
    'torch.Size': torch.Size,
    'torch.device': torch.device,
    'torch._tensor._rebuild_from_type': _rebuild_of_type,
    'torch._tensor._rebuild_from_type_v2': _rebuild_of_type,
    'torch._utils._rebuild_meta_tensor_no_storage': torch._utils._rebuild_meta_tensor_no_storage,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
    'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
    'torch._utils._rebuild_qtensor': _rebuild_quantized_tensor,
    'torch._utils._rebuild_sparse_tensor': torch._utils._rebuild_sparse_tensor,
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v3': _rebuild_tensor_of_dtype,
    'torch.serialization._get_layout': torch.serialization._get_layout,
    'torch.storage.UntypedStorage': torch.UntypedStorage,
}

# Names that show a file to be hostile. Any other name that is not restored is as harmless; these
# are reported instead of passed over.
_FORBIDDEN_MODULES = frozenset({
    '_pickle', 'asyncio', 'code', 'codeop', 'commands', 'ctypes', 'distutils', 'http', 'imp',
    'importlib', 'marshal', 'multiprocessing', 'nt', 'os', 'pdb', 'pickle', 'pip', 'posix', 'pty',
    'runpy', 'shutil', 'signal', 'socket', 'subprocess', 'sys', 'tempfile', 'threading', 'urllib',
    'webbrowser',
})
_FORBIDDEN_NAMES = frozenset({
    'builtins.__import__', 'builtins.breakpoint', 'builtins.compile', 'builtins.delattr',
    'builtins.eval', 'builtins.exec', 'builtins.execfile', 'builtins.globals', 'builtins.input',
    'builtins.locals', 'builtins.open', 'builtins.setattr', 'builtins.vars', 'types.CodeType',
    'types.FunctionType',
})
