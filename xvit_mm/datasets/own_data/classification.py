"""Classifiers on a folder for each class."""
from pathlib import Path

from mmengine.config import Config

from xvit_mm.utils.config import ConfigError

from .common import SPLITS, evaluators, first_folder, heads_get, loaders, metainfo, replace


def use_class_folders(cfg: Config, folder: Path) -> None:
    """Train and validate a classifier of mmpretrain on a folder for each class.

    Raises:
        ConfigError: a split is missing, or the two have other classes.
    """
    splits = {
        name: first_folder(folder, words, f'images for {name}') for name, words in SPLITS.items()
    }
    train, val = (class_names(splits[name]) for name in ('train', 'val'))
    if train != val:
        only = sorted(set(train) ^ set(val))[0]
        raise ConfigError(
            f'{only!r} is a class in only one of {splits["train"]} and {splits["val"]}')
    for name, dataset in loaders(cfg):
        replace(
            dataset, type='CustomDataset', data_root=str(splits[name]), with_label=True,
            metainfo=metainfo(train), test_mode=name == 'val')
        if dataset['pipeline'][0]['type'] != 'LoadImageFromFile':
            dataset['pipeline'] = [dict(type='LoadImageFromFile'), *dataset['pipeline']]
    for preprocessor in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')):
        if preprocessor:
            # A data set that gave RGB has been replaced by files, which are read as BGR.
            preprocessor.update(num_classes=len(train), to_rgb=True)
    for metric in evaluators(cfg):
        if metric.get('type') == 'Accuracy':
            metric['topk'] = tuple(k for k in (1, 5) if k < max(len(train), 2))
    heads_get(cfg, len(train))


def class_names(folder: Path) -> list[str]:
    """Return the class folders in the order of their indices.

    Raises:
        ConfigError: fewer than two, or a hidden one, which mmpretrain would take for a class.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if names and names[0].startswith('.'):
        raise ConfigError(f'{folder / names[0]} would be a class; remove it')
    if len(names) < 2:
        raise ConfigError(f'{folder} has {len(names)} folders; it must have one for each class')
    return names
