"""From a path, an address or a name in a model zoo to a local file."""
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_local_path

from .catalogue import SCHEME, find_released
from .download import download
from .errors import CheckpointError

# mmengine's names of model zoos.
ZOOS = ('torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls')
ALLOWED = (
    'a path, an address (http://, https://, or s3:// with its client installed) or a name in a '
    'model zoo (torchvision://resnet50, open-mmlab://NAME, mmcls://NAME) or in the catalogue of '
    'released weights (official://crossformer_s; for a command, official alone)')


@contextmanager
def local_file(address: str | Path) -> Iterator[Path]:
    """The local file of a checkpoint, downloaded if need be.

    Downloads are kept where `torch.hub` keeps them, so each is made once. In distributed training
    every process must come here: the first one downloads while the others wait.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the address is of a kind that is not known, or cannot be reached.
    """
    scheme, separator, name = str(address).partition('://')
    if scheme in ZOOS:
        # An entry of the user's own may be a file.
        address = _zoo_entry(scheme, name)
        scheme, separator, _ = address.partition('://')
    with ExitStack() as stack:
        if not separator:
            path = Path(address).expanduser()
        elif scheme in ('http', 'https'):
            path = _by_first_process(partial(_downloaded, str(address)))
        elif scheme == SCHEME:
            path = _by_first_process(find_released(name).fetch)
        else:
            path = Path(_from_storage(str(address), stack))
        if not path.is_file():
            # What has no suffix may be meant as a name.
            hint = '' if path.suffix else f'. Allowed is {ALLOWED}'
            raise FileNotFoundError(
                f'checkpoint {str(path)!r} does not exist or is not a file{hint}')
        yield path


def _zoo_entry(zoo: str, name: str) -> str:
    """Address or path of a checkpoint in one of mmengine's tables."""
    # Imports much of mmengine, which the package itself does not need.
    from mmengine.runner import checkpoint as tables
    if zoo in ('torchvision', 'modelzoo'):
        table = tables.get_torchvision_models()
    elif zoo == 'mmcls':
        table = tables.get_mmcls_models()
    else:
        table = tables.get_external_models()
        name = tables.get_deprecated_model_names().get(name, name)
    if name not in table:
        raise CheckpointError(f'{zoo}://{name} is not in the model zoo{_meant(name, table)}')
    entry = table[name]
    return entry if '://' in entry else os.path.join(tables._get_mmengine_home(), entry)


def _meant(name: str, table: Mapping[str, str]) -> str:
    close = get_close_matches(name, table, n=3, cutoff=0.3)
    return f'; close to it are {", ".join(close)}' if close else f'. Allowed is {ALLOWED}'


def _by_first_process(fetch: Callable[[], Path]) -> Path:
    """What `fetch` returns, called by the first process before all others."""
    path = None
    try:
        if get_rank() == 0:
            path = fetch()
    finally:
        # After a failure too, or the others would wait without end.
        barrier()
    # On another machine the file may still be missing.
    return path or fetch()


def _downloaded(url: str) -> Path:
    """The file of a web address, in torch's cache under the name that torch gives it.

    Another address may end in the same name, such as `epoch_12.pth`. So each download leaves its
    address beside it, `{path}.url`, and the file of a second address has a hash in its name.
    """
    name = Path(urlparse(url).path).name or 'download'
    path = Path(torch.hub.get_dir(), 'checkpoints', name)
    if path.is_file() and _record(path).is_file() and _record(path).read_text('utf-8') != url:
        digest = hashlib.sha256(url.encode()).hexdigest()[:8]
        path = path.with_name(f'{path.stem}-{digest}{path.suffix}')
    is_new = not path.is_file()
    download(url, path)
    if is_new:
        _record(path).write_text(url, 'utf-8')
    return path


def _record(path: Path) -> Path:
    return path.with_name(f'{path.name}.url')


def _from_storage(address: str, stack: ExitStack) -> str:
    try:
        return stack.enter_context(get_local_path(address))
    # Each of mmengine's storages has errors of its own; that of an unknown one is a KeyError.
    except Exception as error:
        raise CheckpointError(
            f'checkpoint {address!r} cannot be reached ({type(error).__name__}: {error}). '
            f'Allowed is {ALLOWED}') from None
