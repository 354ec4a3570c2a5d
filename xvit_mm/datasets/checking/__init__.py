"""Check that the data of a config exists and is what the config expects."""
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.frameworks import check_installed

from . import classification, detection, segmentation
from .common import Split, datasets_of, spread_indices

__all__ = ['check_datasets', 'datasets_of']

# By data set class; a subclass is checked as the nearest class in the table.
KINDS: dict[str, ModuleType] = {
    'CocoDataset': detection,
    'BaseSegDataset': segmentation,
    'CustomDataset': classification,
    'CIFAR10': classification,
}
_SAMPLE = re.compile(r'(train|val|test)_sample_[0-9]+\.png')


def check_datasets(
    cfg: Config,
    folder: str | Path,
    *,
    num_samples: int = 4,
    max_files: int = 500,
) -> Iterator[str]:
    """Compare the data sets of a config with their folders; yield the lines of a report.

    Files are looked for one and all, counted by class, and some are opened. The frameworks' own
    data set classes read them.

    Args:
        cfg: the config.
        folder: where samples are drawn with their labels, `{split}_sample_{number}.png`; earlier
            ones go.
        num_samples: how many of each data set.
        max_files: how many images or label maps of each split are opened.

    Raises:
        ConfigError: the first problem, with its remedy, or a data set of an unknown kind.
    """
    check_installed(cfg.get('default_scope'))
    folder = Path(folder)
    _remove_samples(folder)
    checked: dict[str, str] = {}
    drawn: Counter[str] = Counter()
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        for name, settings in datasets_of(cfg):
            same = checked.setdefault(repr(settings), name)
            if same != name:
                yield f'{name}: as {same}'
                continue
            split = _split(name, settings, cfg, max_files)
            kind = _kind(split)
            where = split.settings.get('data_root') or 'the working folder'
            yield (f'{name}: {type(split.dataset).__name__}, {len(split.classes)} classes, '
                   f'in {where}')
            yield from kind.check(split)
            indices = spread_indices(len(split.dataset), num_samples)
            yield from _draw_samples(split, kind, indices, folder, first=drawn[name])
            drawn[name] += len(indices)
    if not checked:
        raise ConfigError(f'{cfg.filename} has no data set to check')


def _split(name: str, settings: dict[str, Any], cfg: Config, max_files: int) -> Split:
    settings = {**settings, 'pipeline': [], 'lazy_init': True}
    if settings.get('type', '').endswith('CIFAR10'):
        settings['download'] = False
    try:
        dataset = DATASETS.build(settings)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'{name}: the data set cannot be built: {error}') from error
    return Split(name, settings, dataset, cfg, max_files)


def _kind(split: Split) -> ModuleType:
    for cls in type(split.dataset).__mro__:
        if cls.__name__ in KINDS:
            return KINDS[cls.__name__]
    raise ConfigError(
        f'{split.name}: the check does not know {type(split.dataset).__name__}; it knows '
        f'{", ".join(KINDS)} and what derives from them')


def _draw_samples(
    split: Split, kind: ModuleType, indices: list[int], folder: Path, *, first: int
) -> Iterator[str]:
    if not indices:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # mmengine warns of every box and mask that touches the edge of its image.
        warnings.simplefilter('ignore')
        for number, index in enumerate(indices, first):
            kind.draw(split, index, folder / f'{split.name}_sample_{number}.png')
    yield f'  samples: {folder}/{split.name}_sample_*.png'


def _remove_samples(folder: Path) -> None:
    for path in folder.glob('*_sample_*.png'):
        if _SAMPLE.fullmatch(path.name):
            path.unlink()
