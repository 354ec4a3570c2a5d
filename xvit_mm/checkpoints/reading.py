"""Reading checkpoint files, without ever running code that is stored in them."""
import os
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from .addresses import local_file
from .catalogue import SCHEME
from .errors import CheckpointError
from .unpickling import ForbiddenCall, pickle_module

# Where the released files keep their tensors, in the order in which we look.
RAW_ENTRIES = ('state_dict', 'model', 'model_state_dict', 'net')
_MAX_DEPTH = 8  # a damaged file may hold itself
EMA_ENTRIES = ('model_ema', 'state_dict_ema', 'ema_state_dict', 'ema')


def read_checkpoint(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint from a file, an address or a model zoo, see `local_file`.

    PyTorch's files of every version are read, and safetensors files, which hold tensors only. Of
    PyTorch's, tensors, plain containers, numbers of numpy and mmengine's training history are
    restored. Objects of any other class, such as the training options that many released files
    carry, become placeholders, so neither their packages nor trust in their authors is needed.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: out of reach, damaged, not a checkpoint, or it calls what no checkpoint
            needs.
    """
    with local_file(path) as file:
        try:
            checkpoint = _load(file, map_location)
        except (CheckpointError, FileNotFoundError):
            raise
        except ForbiddenCall as error:
            raise CheckpointError(
                f'{file} cannot be read: it calls {error.name}, which no checkpoint needs. The '
                'call was not made; do not trust this file') from None
        except PermissionError as error:
            raise CheckpointError(f'{file} cannot be read: {error.strerror}') from None
        # Damage may lead to an exception of any kind.
        except Exception as error:
            raise CheckpointError(_unreadable(file, error)) from None
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'{path} holds a {type(checkpoint).__name__} where a checkpoint is a dict of tensors, '
            'or one that has such a dict in it')
    return checkpoint


def find_state_dict(checkpoint: Mapping[str, Any], *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint in any of the released forms.

    With `ema` the averaged weights come first; they are also taken if there are no others.

    Raises:
        CheckpointError: there are no tensors in it.
    """
    order = EMA_ENTRIES + RAW_ENTRIES if ema else RAW_ENTRIES + EMA_ENTRIES
    for _ in range(_MAX_DEPTH):
        inner = next((e for e in order if isinstance(checkpoint.get(e), Mapping)), None)
        if inner is None:
            break
        checkpoint = checkpoint[inner]
    tensors = OrderedDict((n, t) for n, t in checkpoint.items() if isinstance(t, Tensor))
    if not tensors:
        raise CheckpointError(
            f'no tensors in this checkpoint; its entries are {sorted(map(str, checkpoint))[:8]}, '
            f'and state dicts are looked for in {", ".join(order)}')
    if unnamed := [name for name in tensors if not isinstance(name, str)]:
        raise CheckpointError(
            f'the tensors of this checkpoint have keys like {unnamed[0]!r} where a state dict has '
            'names: it may be the state of an optimizer')
    versions = getattr(checkpoint, '_metadata', None)
    if isinstance(versions, Mapping) and all(isinstance(v, Mapping) for v in versions.values()):
        # The versions of the modules, by which some understand their older names.
        tensors._metadata = versions  # type: ignore[attr-defined]
    return tensors


def _load(file: Path, map_location: Any) -> Any:
    with file.open('rb') as stream:
        start = stream.read(9)
    if start[8:] == b'{':
        return _load_safetensors(file, map_location)
    # torch reads this variable, and exports no function that does.
    if os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0').lower() in ('1', 'y', 'yes', 'true'):
        raise CheckpointError(
            f'{file} cannot be read while TORCH_FORCE_WEIGHTS_ONLY_LOAD is set, which torch takes '
            'to forbid any other safe way. Unset it; no code in a file is run without it either')
    sizes = None
    if start.startswith(b'PK'):
        reader: Any = torch._C.PyTorchFileReader(str(file))
        if reader.has_record('constants.pkl'):
            raise CheckpointError(
                f'{file} cannot be read: it is a TorchScript program, not a checkpoint')
        with zipfile.ZipFile(file) as archive:
            sizes = {i.filename.partition('/')[2]: i.file_size for i in archive.infolist()}
    elif tarfile.is_tarfile(file):
        raise CheckpointError(
            f'{file} cannot be read: it is an archive of torch before 0.2, or of something else')
    return torch.load(
        file, map_location=map_location, pickle_module=pickle_module(sizes), weights_only=False)


def _load_safetensors(file: Path, map_location: Any) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f'{file} needs the package safetensors: pip install safetensors') from None
    tensors = load_file(file)
    if isinstance(map_location, (str, torch.device)):
        return {name: tensor.to(map_location) for name, tensor in tensors.items()}
    return tensors


@CheckpointLoader.register_scheme(prefixes=f'{SCHEME}://')
def _load_for_mmengine(filename: str, map_location: Any = None, **_: Any) -> dict[str, Any]:
    """`official://NAME` wherever mmengine loads a checkpoint: stock runners and inferencers."""
    return read_checkpoint(filename, map_location)


def _unreadable(file: Path, error: Exception) -> str:
    first_line = (str(error) or type(error).__name__).splitlines()[0][:200]
    return (
        f'{file} ({file.stat().st_size:,} bytes) cannot be read as a PyTorch checkpoint: it is '
        'damaged, cut off or something else. Replace it by a new download or copy. The reader '
        f'says: {first_line}')
