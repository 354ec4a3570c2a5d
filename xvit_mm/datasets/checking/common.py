"""Shared parts of the checks of all kinds of data sets."""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from xvit_mm.datasets.images import read_image
from xvit_mm.utils.config import ConfigError, datasets_in

LAYOUTS = 'docs/datasets.md shows the layout of each data set'


@dataclass(frozen=True)
class Split:
    """A data set of a config, with the settings of the check.

    Attributes:
        name: train, val or test.
        settings: its entry in the config, without the pipeline.
        dataset: built from it, with an empty pipeline; nothing is loaded yet.
        cfg: the whole config.
        max_files: how many images or label files are opened; all are looked for.
    """

    name: str
    settings: Mapping[str, Any]
    dataset: BaseDataset
    cfg: Config
    max_files: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the framework's order; empty if the data set has none."""
        # Not `metainfo`, which copies all of it at each access: minutes for ImageNet's labels.
        return tuple(self.dataset._metainfo.get('classes') or ())

    def class_name(self, index: int) -> str:
        """Return the name of a class, with its number where two classes share the name."""
        name = self.classes[index]
        return f'{name} ({index})' if self.classes.count(name) > 1 else name

    def problem(self, text: str, remedy: str) -> ConfigError:
        """Return the error that reports a problem of this split."""
        return ConfigError(f'{self.name}: {text}. {remedy}')


def datasets_of(cfg: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield split and settings of every data set of a config, unwrapped, without pipeline."""
    for name in ('train', 'val', 'test'):
        for settings in datasets_in(cfg.get(f'{name}_dataloader')):
            yield name, {key: value for key, value in settings.items() if key != 'pipeline'}


def require(split: Split, path: str | Path, what: str) -> Path:
    """Return a path that must exist.

    Raises:
        ConfigError: it does not; says what there is instead.
    """
    path = Path(path)
    if path.exists():
        return path
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    found = sorted(entry.name for entry in parent.iterdir())
    raise split.problem(
        f'{what} {str(path)!r} does not exist; {parent} holds {shorten(found) or "nothing"}',
        f'Name the folder of the data with --data-root FOLDER, or correct the paths: {LAYOUTS}')


def read(split: Split, path: str | Path, **options: Any) -> np.ndarray:
    """Read an image like `read_image`, reporting the split.

    Raises:
        ConfigError: the file is damaged, or not an image.
    """
    try:
        return read_image(path, **options)
    except ValueError as error:
        raise split.problem(str(error), 'Remove or replace the file') from None


def load(split: Split) -> None:
    """Let the framework read the data set.

    Raises:
        ConfigError: the framework cannot, or nothing is left to use.
    """
    try:
        # pycocotools tells its progress on standard output, into the report.
        with redirect_stdout(StringIO()):
            split.dataset.full_init()
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        # How mmengine fails on a data set of which nothing is left.
        if 'need at least one array' in str(error):
            raise _nothing_left(split) from None
        kind = type(split.dataset).__name__
        raise split.problem(
            f'{kind} cannot read it: {type(error).__name__}: {error}', LAYOUTS) from error
    if not len(split.dataset):
        raise _nothing_left(split)


def _nothing_left(split: Split) -> ConfigError:
    return split.problem(
        f'no image is left after filtering (filter_cfg={split.settings.get("filter_cfg")})',
        'No image has an object of the classes of the config: compare metainfo.classes with the '
        'annotations')


def check_num_classes(split: Split) -> None:
    """Raise a ConfigError if a part of the model has another number of classes than the data."""
    count = len(split.classes)
    for name, value in _entries(split.cfg.get('model'), 'model', 'num_classes'):
        if value != count:
            raise split.problem(
                f'{name} is {value}, but the data set has {count} classes '
                f'({shorten(split.classes)})', f'Set {name} to {count}')


def spread_indices(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices below `count`, evenly spread."""
    limit = min(count, limit)
    return [index * count // limit for index in range(limit)]


def plural(count: int, noun: str) -> str:
    return f'{count} {noun}' + ('s' if count != 1 else '')


def shorten(names: Sequence[Any], limit: int = 6) -> str:
    """Return a few names and the number of the others."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(map(str, names[:limit])) + more


def count_lines(title: str, counts: Mapping[str, str]) -> Iterator[str]:
    """Yield `title: name count, name count ...`, wrapped."""
    yield from paragraph(f'{title}: ' + ', '.join(f'{k} {v}' for k, v in counts.items()))


def paragraph(text: str) -> Iterable[str]:
    return wrap(text, 96, initial_indent='  ', subsequent_indent='    ', break_long_words=False)


def _entries(node: Any, path: str, key: str) -> Iterator[tuple[str, int]]:
    """Yield dotted name and value of every integer entry `key`."""
    if isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from _entries(child, f'{path}.{index}', key)
    if isinstance(node, Mapping):
        if isinstance(node.get(key), int):
            yield f'{path}.{key}', node[key]
        for name, child in node.items():
            yield from _entries(child, f'{path}.{name}', key)
