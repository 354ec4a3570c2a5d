"""Files that appear whole or not at all, and folders that can be written."""
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class FolderError(OSError):
    """A folder or disk that cannot be written; the message says what to do."""


@contextmanager
def replaced_whole(path: str | Path) -> Iterator[Path]:
    """Yield the name of a temporary file that takes the place of `path` once it is on the disk.

    Whatever happens meanwhile (a kill, a full disk, a power cut), `path` is either what it was
    before or the complete new file.

    Raises:
        FolderError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.partial')
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise FolderError(
            f'{path} cannot be written: {error.strerror or error} ({_free(path.parent)} free). '
            'Files written earlier are intact; make room or choose another folder') from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replaced_whole(path) as partial:
        partial.write_text(text, encoding='utf-8')


def remove_partial_files(folder: str | Path) -> None:
    """Remove what killed processes have left of `replaced_whole`."""
    for path in Path(folder).glob('.*.partial'):
        with suppress(OSError):
            path.unlink()


def check_writable(folder: str | Path, option: str) -> None:
    """Create a folder and a file in it, to learn before a long run whether that is possible.

    Args:
        option: what names the folder on the command line, for the message.

    Raises:
        FolderError: it is a file, lies below one, is read-only, or its disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FolderError(
            f'{option} {str(folder)!r} cannot be used: {_reason(folder, error)}. Choose a folder '
            'that can be written, or make this one writable') from error


def check_room(folder: str | Path, needed: int) -> None:
    """Raise a FolderError if a disk has less room than `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FolderError(
            f'{folder}: one checkpoint of this model needs about {_size(needed)} and the disk has '
            f'{_size(free)} left. Make room or choose another folder')


def _reason(folder: Path, error: OSError) -> str:
    in_the_way = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    return f'{str(in_the_way)!r} is a file' if in_the_way else error.strerror or str(error)


def _sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk, where the system can tell."""
    if path.is_dir() and os.name == 'nt':
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    try:
        return _size(shutil.disk_usage(folder).free)
    except OSError:
        return 'unknown space'


def _size(count: int) -> str:
    return f'{count / 2**30:.1f} GiB' if count >= 2**30 else f'{count / 2**20:.1f} MiB'
