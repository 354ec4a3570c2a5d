"""Downloads: complete or not there, resumed after an interruption, compared with the first one."""
import hashlib
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from mmengine.logging import print_log
from torch.hub import tqdm

from .errors import CheckpointError

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte from the server
ATTEMPTS = 3  # at one download; a connection that is cut is resumed
# What a file that `torch.save` wrote begins with: a zip archive, or a pickle before torch 1.6.
_MAGIC = (b'PK', b'\x80')


def download(url: str, path: Path) -> None:
    """Download a file unless it is there; it appears under its name when it is complete.

    A download that was interrupted is resumed where the server allows it: what has come is kept
    beside `path`, under a name that changes with the file on the server. Several processes on one
    machine may call this at once.

    Raises:
        CheckpointError: the server cannot be reached, refuses, or keeps cutting the connection.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if path.is_file():
            return
        print_log(f'Downloading {url} to {path}', logger='current')
        try:
            partial = _download(url, path)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CheckpointError(
                f'{url} cannot be downloaded: {error}. Run the command again to go on, or get the '
                f'file in another way and give its path, or put it at {path}') from None
        partial.replace(path)
        for leftover in path.parent.glob(f'{path.name}.*.part'):
            leftover.unlink()


def download_from_drive(file_id: str, path: Path) -> None:
    """Download a public file from Google Drive, which asks for a confirmation of large files.

    Raises:
        CheckpointError: `gdown` is not installed, or Drive does not give the file.
    """
    by_hand = (f'open https://drive.google.com/file/d/{file_id}/view in a browser and put the file '
               f'at {path}')
    try:
        import gdown
    except ImportError:
        raise CheckpointError(
            f'{path.name} is on Google Drive, from which `gdown` downloads: pip install gdown. '
            f'Without it, {by_hand}') from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if path.is_file():
            return
        print_log(f'Downloading {path.name} from Google Drive to {path}', logger='current')
        try:
            given = gdown.download(id=file_id, output=str(path), quiet=not sys.stderr.isatty(),
                                   use_cookies=False, resume=True)
            if given is None:  # how older versions fail
                raise OSError('no file came')
        # gdown's own errors have changed from version to version.
        except Exception as error:
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f'Google Drive does not give {path.name}: {reason}. Run the command again to go '
                f'on, or {by_hand}') from None


def check_hash(path: Path, expected: str | None = None) -> None:
    """Compare a file with the hash that is known or was recorded; record it the first time.

    The record is `{path}.sha256`, in the format of the program `sha256sum`. It outlives the file.

    Raises:
        CheckpointError: no checkpoint, such as a login page, or not the file that was
            downloaded before.
    """
    with path.open('rb') as file:
        if not file.read(2).startswith(_MAGIC):
            raise CheckpointError(
                f'{path} is not a checkpoint but probably a page of text: delete it and fetch it '
                'again, in a browser if need be')
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    record = path.with_name(f'{path.name}.sha256')
    if expected is None and not record.is_file():
        record.write_text(f'{digest.hexdigest()}  {path.name}\n', encoding='utf-8')
        return
    source = 'the catalogue' if expected else str(record)
    expected = expected or record.read_text(encoding='utf-8').split()[0]
    if digest.hexdigest() != expected:
        way_out = '' if source == 'the catalogue' else (
            f' If the authors have replaced the file and you trust the new one, delete {record}.')
        raise CheckpointError(
            f'{path} is not the file that is expected: its SHA-256 is {digest.hexdigest()}, and '
            f'{source} says {expected}. Delete it and fetch it again.{way_out}')


def _download(url: str, path: Path) -> Path:
    """The complete file under a temporary name."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _attempt(url, path)
        except urllib.error.HTTPError:
            raise
        except (ConnectionError, TimeoutError, http.client.IncompleteRead) as error:
            if attempt == ATTEMPTS:
                raise
            print_log(f'Connection lost ({error}), trying again', logger='current')
    raise AssertionError('unreachable')


def _attempt(url: str, path: Path) -> Path:
    with urllib.request.urlopen(_request(url), timeout=TIMEOUT) as response:
        validator = response.headers.get('ETag') or response.headers.get('Last-Modified')
        length = response.headers.get('Content-Length')
        version = hashlib.sha256(f'{url} {validator} {length}'.encode()).hexdigest()[:8]
        partial = path.with_name(f'{path.name}.{version}.part')
        have = partial.stat().st_size if partial.is_file() else 0
        if not have or not validator or length is None or have > int(length):
            _save(response, partial, 0)
            return partial
    if have < int(length):
        request = _request(url, {'Range': f'bytes={have}-', 'If-Range': validator})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            # 206: the rest; a server that cannot do this sends everything, with 200.
            _save(response, partial, have if response.status == 206 else 0)
    return partial


def _request(url: str, headers: dict[str, str] | None = None) -> urllib.request.Request:
    return urllib.request.Request(url, headers={'User-Agent': 'xvit_mm', **(headers or {})})


def _save(response: http.client.HTTPResponse, partial: Path, have: int) -> None:
    """Append what a response holds to the `have` bytes that have come before."""
    length = response.headers.get('Content-Length')
    total = have + int(length) if length is not None else None
    with partial.open('ab' if have else 'wb') as file, tqdm(
            total=total, initial=have, unit='B', unit_scale=True, unit_divisor=1024,
            disable=not sys.stderr.isatty()) as bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        received = file.tell()
    # A connection that is cut looks like the end of the file.
    if total is not None and received < total:
        raise ConnectionError(f'the connection was cut after {received} of {total} bytes')
