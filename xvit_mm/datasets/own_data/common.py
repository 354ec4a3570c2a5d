"""What the three frameworks share: places to look in, heads, colours."""
import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from xvit_mm.utils.config import ConfigError, datasets_in, dicts_in

# Names of the two splits, the customary ones first.
SPLITS = {
    'train': ('train', 'training', 'train2017'),
    'val': ('val', 'valid', 'validation', 'val2017', 'test'),
}


def palette(num_classes: int) -> list[tuple[int, int, int]]:
    """Return `num_classes` RGB colours with evenly spaced hues."""
    hues = [i / num_classes for i in range(num_classes)]
    return [
        tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.75, (0.95, 0.7)[i % 2]))
        for i, hue in enumerate(hues)
    ]


def metainfo(classes: Sequence[str]) -> dict[str, Any]:
    """Return the metainfo of data sets: class names and colours."""
    return dict(classes=tuple(classes), palette=palette(len(classes)))


def first_folder(folder: Path, candidates: Sequence[str], what: str) -> Path:
    """Return the first of some folders that exists.

    Raises:
        ConfigError: none is.
    """
    found = next((folder / name for name in candidates if (folder / name).is_dir()), None)
    if found is None:
        raise ConfigError(f'{folder} has no folder with {what}; looked for {", ".join(candidates)}')
    return found


def heads_get(cfg: Config, num_classes: int) -> None:
    """Give every head of the model this many classes.

    Raises:
        ConfigError: no head says how many it has.
    """
    parts = [part for part in dicts_in(cfg.model) if isinstance(part.get('num_classes'), int)]
    if not parts:
        raise ConfigError('--own-data: no part of the model has an entry num_classes to set')
    for part in parts:
        part['num_classes'] = num_classes


def loaders(cfg: Config) -> Iterator[tuple[str, dict]]:
    """Yield the split and the data set of each loader that the config has.

    Where a loader joins several data sets, the first takes the place of all.
    """
    for name, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = cfg.get(f'{name}_dataloader')
        if loader:
            yield split, _only_dataset(loader)


def _only_dataset(node: dict) -> dict:
    while 'dataset' in node:
        node = node['dataset']
    if 'datasets' in node:
        first = next(datasets_in(node))
        node.clear()
        node.update(first)
    return node


def evaluators(cfg: Config) -> Iterator[dict]:
    """Yield every metric of the config."""
    for name in ('val_evaluator', 'test_evaluator'):
        metrics = cfg.get(name) or []
        yield from metrics if isinstance(metrics, (list, tuple)) else [metrics]


def replace(dataset: dict, **entries: Any) -> None:
    """Replace a data set in place, keeping its pipeline and its choice of images."""
    kept = {key: dataset[key] for key in ('pipeline', 'indices') if key in dataset}
    dataset.clear()
    dataset.update(**entries, **kept)
