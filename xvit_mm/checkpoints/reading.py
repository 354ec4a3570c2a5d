"""Reading checkpoint files, without ever running code that is stored in them."""
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer
from torch import Tensor

# Where the released files keep their tensors, in the order in which we look.
RAW_ENTRIES = ('state_dict', 'model', 'model_state_dict', 'net')
EMA_ENTRIES = ('model_ema', 'state_dict_ema', 'ema_state_dict', 'ema')


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that is not for this model."""


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from a file or an address (`http://`, `s3://`, as in mmengine).

    Only tensors, plain containers and mmengine's training history are restored. Objects of any
    other class, such as the training options that many released files carry, become empty
    placeholders, so neither their packages nor trust in their authors is needed.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, or is not a checkpoint.
    """
    if '://' in str(path):
        with get_local_path(str(path)) as local:
            return read_checkpoint(local, map_location)
    if not Path(path).is_file():
        raise FileNotFoundError(f'checkpoint {str(path)!r} does not exist or is not a file')
    try:
        with ExitStack() as stack:
            _allow_inert_classes(path, stack)
            return torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        size = Path(path).stat().st_size
        raise CheckpointError(
            f'{path} ({size:,} bytes) cannot be read as a PyTorch checkpoint: it is damaged, cut '
            f'off or something else. Download or copy it again. torch says: {_first_line(error)}'
        ) from None


def find_state_dict(checkpoint: Mapping[str, Any], *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint in any of the released forms.

    With `ema` the averaged weights come first; they are also taken if there are no others.

    Raises:
        CheckpointError: there are no tensors in it.
    """
    order = EMA_ENTRIES + RAW_ENTRIES if ema else RAW_ENTRIES + EMA_ENTRIES
    for entry in order:
        if isinstance(checkpoint.get(entry), Mapping):
            return find_state_dict(checkpoint[entry], ema=ema)
    tensors = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f'no tensors in this checkpoint; its entries are {sorted(map(str, checkpoint))[:8]}, '
            f'and state dicts are looked for in {", ".join(order)}')
    return tensors


def _allow_inert_classes(path: str | Path, stack: ExitStack) -> None:
    serialization = torch.serialization
    if not hasattr(serialization, 'get_unsafe_globals_in_checkpoint'):
        return
    try:
        foreign = serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError):
        # A file of before torch 1.6 cannot be inspected; `torch.load` decides.
        return
    harmless = {f'{c.__module__}.{c.__qualname__}': c for c in _HARMLESS}
    harmless['builtins.getattr'] = _history_statistic
    classes = [(harmless.get(name, _Placeholder), name) for name in foreign]
    stack.enter_context(serialization.safe_globals(classes + _DTYPES))


class _Placeholder:
    """Stands for a class that is not restored: anything made of it is an empty dict."""

    def __new__(cls, *args: Any) -> OrderedDict:
        return OrderedDict()


def _history_statistic(owner: type, name: str) -> Any:
    """mmengine's history refers to its statistics by `getattr`; nothing else may."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    return OrderedDict()


_multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
_HARMLESS = (HistoryBuffer, np.ndarray, np.dtype, _multiarray.scalar, _multiarray._reconstruct)
_DTYPES = [type(np.dtype(name))
           for name in ('int32', 'int64', 'uint8', 'float32', 'float64', 'bool')]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
