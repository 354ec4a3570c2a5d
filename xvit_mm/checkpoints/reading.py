"""Reading checkpoint files, without ever running code that is stored in them."""
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

from .addresses import local_file
from .catalogue import SCHEME
from .errors import CheckpointError

try:
    from numpy._core import multiarray
except ImportError:  # before numpy 1.26
    from numpy.core import multiarray

# Where the released files keep their tensors, in the order in which we look.
RAW_ENTRIES = ('state_dict', 'model', 'model_state_dict', 'net')
EMA_ENTRIES = ('model_ema', 'state_dict_ema', 'ema_state_dict', 'ema')


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from a file, an address or a model zoo, see `local_file`.

    Only tensors, plain containers and mmengine's training history are restored. Objects of any
    other class, such as the training options that many released files carry, become empty
    placeholders, so neither their packages nor trust in their authors is needed. Where torch has
    no way to do that (`restores_objects`), files with objects are refused.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: out of reach, damaged, not a checkpoint, or with objects in it that cannot
            be left out.
    """
    with local_file(path) as file:
        try:
            with ExitStack() as stack:
                _allow_inert_classes(file, stack)
                checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
            raise CheckpointError(_unreadable(file, error)) from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{path} holds a {type(checkpoint).__name__} where a checkpoint is a dict of tensors, '
            'or one that has such a dict in it')
    return checkpoint


def restores_objects() -> bool:
    """Whether torch can be told which classes in a file are harmless, as it can since 2.6."""
    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')


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
    tensors = OrderedDict((n, t) for n, t in checkpoint.items() if isinstance(t, Tensor))
    if not tensors:
        raise CheckpointError(
            f'no tensors in this checkpoint; its entries are {sorted(map(str, checkpoint))[:8]}, '
            f'and state dicts are looked for in {", ".join(order)}')
    if hasattr(checkpoint, '_metadata'):
        # The versions of the modules, by which some understand their older names.
        tensors._metadata = checkpoint._metadata
    return tensors


def _allow_inert_classes(path: str | Path, stack: ExitStack) -> None:
    if not restores_objects():
        return
    serialization = torch.serialization
    try:
        foreign = serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError):
        # A file of before torch 1.6 cannot be inspected; `torch.load` decides.
        return
    harmless = {f'{c.__module__}.{c.__qualname__}': c for c in _HARMLESS}
    harmless['builtins.getattr'] = _history_statistic
    classes = [(harmless.get(name, _Placeholder), name) for name in foreign]
    stack.enter_context(serialization.safe_globals(classes + _DTYPES))


@CheckpointLoader.register_scheme(prefixes=f'{SCHEME}://')
def _load_for_mmengine(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    """`official://NAME` wherever mmengine loads a checkpoint: stock runners and inferencers."""
    if restores_objects():
        return read_checkpoint(filename, map_location)
    with local_file(filename) as path:
        return CheckpointLoader.load_checkpoint(str(path), map_location)


class _Placeholder:
    """Stands for a class that is not restored: anything made of it is an empty dict."""

    def __new__(cls, *args: Any) -> OrderedDict:
        return OrderedDict()


def _history_statistic(owner: type, name: str) -> Any:
    """mmengine's history refers to its statistics by `getattr`; nothing else may."""
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(owner, name)
    return OrderedDict()


_HARMLESS = (HistoryBuffer, np.ndarray, np.dtype, multiarray.scalar, multiarray._reconstruct)
_DTYPES = [type(np.dtype(name))
           for name in ('int32', 'int64', 'uint8', 'float32', 'float64', 'bool')]


def _unreadable(path: Path, error: Exception) -> str:
    # In torch's words, which have changed.
    if called := re.search(r'GLOBAL ([\w.]+) whose module \S+ is blocked', str(error)):
        return (
            f'{path} cannot be read: it calls {called[1]}, which no checkpoint needs. The call was '
            'not made; do not trust this file')
    if objects := re.search(r'Unsupported (?:class|global: GLOBAL) ([\w.]+)', str(error)):
        way_out = ('Save the file again with a newer torch: its format is that of before 1.6'
                   if restores_objects() else 'Reading it safely needs torch 2.6 or newer')
        return f'{path} cannot be read: it holds objects of {objects[1]}. {way_out}'
    return (
        f'{path} ({path.stat().st_size:,} bytes) cannot be read as a PyTorch checkpoint: it is '
        'damaged, cut off or something else. Replace it by a new download or copy. torch says: '
        f'{_first_line(error)}')


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
