"""What pictures are to be predicted: image files, folders, patterns, videos and webcams."""
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from xvit_mm.datasets.images import IMAGE_SUFFIXES, read_image
from xvit_mm.utils.config import ConfigError

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
_DEFAULT_RATE = 25.  # frames per second, of a webcam that does not tell


@dataclass(frozen=True)
class Source:
    """An image file, a video file or a webcam.

    name: of the files to write, unique among the sources of a run.
    """

    path: str
    name: str
    kind: str  # 'image', 'video' or 'webcam'


class BrokenFile(ValueError):
    """A file that cannot be read, or only in part; the message names it."""


def find_sources(inputs: Sequence[str], *, out: str | Path | None = None) -> list[Source]:
    """The files that the inputs of a command stand for, folders and patterns in sorted order.

    Args:
        inputs: each a file, a folder (searched with its subfolders), a pattern such as
            `images/*.jpg` in quotation marks, or the number of a webcam.
        out: the folder for the results. Where it lies within an input folder, its files are left
            out: they are the results of an earlier run.

    Raises:
        ConfigError: an input is not there, or a folder or pattern has no images.
    """
    found: list[tuple[str, str]] = []
    for entry in inputs:
        found += [(entry, 'webcam')] if entry.isdigit() else [
            (path, _kind(path)) for path in _files(entry, out)]
    sources: dict[str, Source] = {}
    for path, kind in dict.fromkeys(found):
        stem = f'webcam{path}' if kind == 'webcam' else Path(path).stem
        # Two files may have one name, in different folders or formats.
        numbered = (f'{stem}_{number}' for number in count(2))
        name = stem if stem not in sources else next(n for n in numbered if n not in sources)
        sources[name] = Source(path, name, kind)
    return list(sources.values())


def read_frames(source: Source) -> Iterator[np.ndarray]:
    """The one image or the frames of a source, [H, W, 3] of uint8 in BGR.

    Raises:
        BrokenFile: it cannot be read, or a video ends too early.
    """
    if source.kind == 'image':
        try:
            yield read_image(source.path)
        except ValueError as error:
            raise BrokenFile(str(error)) from error
        return
    capture = _open(source)
    try:
        number = 0
        while (frame := capture.read()[1]) is not None:
            number += 1
            yield frame
    finally:
        capture.release()
    expected = num_frames(source) or 1
    # Some formats tell their length only roughly.
    if number < 0.9 * expected:
        raise BrokenFile(f'{source.path}: only {number} of {expected} frames can be read')


def num_frames(source: Source) -> int | None:
    """How many frames there are; None if that is not known."""
    if source.kind == 'image':
        return 1
    if source.kind == 'webcam':
        return None
    capture = cv2.VideoCapture(source.path)
    number = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return number if number > 0 else None


def frame_rate(source: Source) -> float:
    """Frames per second of a video or webcam."""
    capture = _open(source)
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return rate if 0 < rate <= 1000 else _DEFAULT_RATE


def _open(source: Source) -> cv2.VideoCapture:
    address = int(source.path) if source.kind == 'webcam' else source.path
    capture = cv2.VideoCapture(address)
    if not capture.isOpened():
        what = 'no such webcam' if source.kind == 'webcam' else 'damaged, or not a video'
        raise BrokenFile(f'{source.path} cannot be opened: {what}')
    return capture


def _files(entry: str, out: str | Path | None) -> list[str]:
    path = Path(entry).expanduser()
    if path.is_dir():
        results = Path(out).resolve() if out else None
        if results and path.resolve() not in results.parents:
            results = None
        files = sorted(str(file) for file in path.rglob('*')
                       if file.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES
                       and results not in file.resolve().parents)
    elif path.is_file():
        return [str(path)]
    elif glob.has_magic(entry):
        files = sorted(file for file in glob.glob(os.path.expanduser(entry), recursive=True)
                       if os.path.isfile(file))
    else:
        raise ConfigError(
            f'{entry!r} does not exist; give image or video files, folders, patterns in quotation '
            'marks, or the number of a webcam')
    if not files:
        raise ConfigError(f'{entry!r} has no images or videos ({" ".join(IMAGE_SUFFIXES)} ...)')
    return files


def _kind(path: str) -> str:
    return 'video' if Path(path).suffix.lower() in VIDEO_SUFFIXES else 'image'
