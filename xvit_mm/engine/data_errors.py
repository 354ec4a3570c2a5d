"""Damaged data, named by their files instead of by what a library stumbles over."""
import os
from collections.abc import Mapping
from typing import Any

import cv2
from torch.utils.data import Dataset

from xvit_mm.utils.config import ConfigError

# What data set classes raise on files that are not what they expect.
_UNREADABLE = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
# What mmengine's BaseDataset stumbles over where its filter leaves no sample.
_EMPTY = 'need at least one array to concatenate'


class DataError(ValueError):
    """A file of a data set that cannot be used; the message names it.

    A worker of a data loader passes on the text of a whole traceback, of which the last line stays.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


class NamedErrors:
    """While a data set is built: raises a ConfigError that says which file could not be used."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings.get('dataset') if isinstance(settings, Mapping) else None

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        is_expected = isinstance(error, _UNREADABLE) and not isinstance(error, ConfigError)
        if is_expected and isinstance(self.settings, Mapping):
            if str(error) == _EMPTY:
                raise ConfigError(_nothing_left(self.settings)) from error
            raise ConfigError(
                f'{self.settings.get("type")}: {_source(self.settings)} cannot be used: '
                f'{kind.__name__}: {_first_line(error)}. "python tools/check_dataset.py CONFIG" '
                'examines the data') from error

    def check_length(self, dataset: Dataset) -> None:
        """Raise a ConfigError if no image is left."""
        if isinstance(self.settings, Mapping) and hasattr(dataset, '__len__') and not len(dataset):
            raise ConfigError(_nothing_left(self.settings))


def check_image(dataset: Dataset, index: int, error: Exception) -> None:
    """Raise a DataError if a sample has failed because its image cannot be read or resized."""
    try:
        path = str(dataset.get_data_info(index)['img_path'])
    except Exception:  # not a data set of files
        return
    if '://' in path:
        return
    if not os.path.isfile(path):
        raise DataError(f'{path} does not exist')
    if not os.path.getsize(path):
        raise DataError(f'{path} is empty')
    image = cv2.imread(path)
    if image is None:
        raise DataError(f'{path} ({os.path.getsize(path):,} bytes) cannot be read as an image: it '
                        'is damaged, cut off or something else')
    if isinstance(error, cv2.error):
        # Such as a side of 3 pixels that becomes 0 where the longer one is reduced.
        raise DataError(f'{path}, {image.shape[1]} x {image.shape[0]} pixels, does not pass the '
                        f'pipeline: {" ".join(str(error).split())}')


def _nothing_left(settings: Mapping[str, Any]) -> str:
    return (f'{settings.get("type")}: no image is left of {_source(settings)}: it has none, or none '
            'with a label of the classes in the config. "python tools/check_dataset.py CONFIG" says '
            'which')


def _source(settings: Mapping[str, Any]) -> str:
    """The annotation file of a data set, or its folder."""
    inner = settings.get('dataset') or settings.get('datasets')
    if inner:
        return ', '.join(_source(s) for s in (inner if isinstance(inner, list) else [inner]))
    return os.path.join(settings.get('data_root') or '', settings.get('ann_file') or '')


def _first_line(error: BaseException) -> str:
    return (str(error) or 'no reason given').splitlines()[0][:200]
