"""Images of one class each: a folder for each class, a list, or the batches of CIFAR-10."""
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .common import (Split, check_num_classes, count_lines, shorten, load, paragraph, plural, read,
                     require, spread_indices)
from .drawing import enlarged, write_panels

_WORDNET_ID = re.compile(r'n\d{8}')
_MANY = 30  # classes; of more, only the extremes are listed


def check(split: Split) -> Iterator[str]:
    """Yield lines about the images of each class.

    Raises:
        ConfigError: the first problem.
    """
    if hasattr(split.dataset, 'base_folder'):
        _check_batches(split)
    elif split.dataset.ann_file:
        require(split, split.dataset.ann_file, 'the list of images')
    else:
        _check_folders(split, require(split, split.dataset.img_prefix, 'the folder of the images'))
    load(split)
    check_num_classes(split)
    yield f'  {plural(len(split.dataset), "image")}'
    labels = [split.dataset.get_data_info(i)['gt_label'] for i in range(len(split.dataset))]
    _check_labels(split, labels)
    _check_files(split)
    yield from _count(split, labels)


def draw(split: Split, index: int, path: Path) -> None:
    """Draw an image under the name of its class."""
    info = split.dataset.get_data_info(index)
    image = enlarged(_image(split, info))
    label = info['gt_label']
    write_panels(path, [image], [f'{label}: {split.classes[label]}'])


def _check_batches(split: Split) -> None:
    """CIFAR-10: the official batches, or `train/` and `test/` with a folder for each class."""
    root = require(split, split.dataset.data_prefix['root'], 'the folder')
    folder = root / split.dataset.split
    if folder.is_dir():
        _check_names(split, folder)
    else:
        require(split, root / split.dataset.base_folder, 'the folder of the batches')


def _check_folders(split: Split, root: Path) -> None:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not folders:
        raise split.problem(
            f'{root} has no folder for each class but {len(list(root.iterdir()))} files',
            'Sort the images into a folder for each class, or list them with their labels in '
            'meta/train.txt and meta/val.txt')
    if split.classes and len(folders) != len(split.classes):
        raise split.problem(
            f'{root} has {len(folders)} folders for {len(split.classes)} classes: '
            f'{shorten(folders)}',
            'Each class needs a folder, in every split, and there may be no others')
    # ImageNet names its folders after WordNet, whose order is that of the classes.
    if not all(map(_WORDNET_ID.fullmatch, folders)):
        _check_names(split, root)


def _check_names(split: Split, root: Path) -> None:
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    missing = [name for name in split.classes if name not in folders]
    if missing:
        raise split.problem(
            f'{root} has no folder for the classes {shorten(missing)}; it has {shorten(folders)}',
            'Name the folders as the classes, or set metainfo=dict(classes=...) to their names')
    if folders != list(split.classes) and not hasattr(split.dataset, 'base_folder'):
        raise split.problem(
            f'the config names the classes in the order {shorten(split.classes)}, but mmpretrain '
            f'numbers the folders by their names: {shorten(folders)}',
            'Set metainfo=dict(classes=...) in alphabetical order')


def _check_labels(split: Split, labels: list[int]) -> None:
    wrong = [label for label in labels if not 0 <= label < len(split.classes)]
    if wrong:
        raise split.problem(f'there is a label {wrong[0]}, but only {len(split.classes)} classes',
                            'Number the classes from 0')


def _check_files(split: Split) -> None:
    for index in spread_indices(len(split.dataset), split.max_files):
        _image(split, split.dataset.get_data_info(index))


def _image(split: Split, info: dict[str, Any]) -> np.ndarray:
    """`[H, W, 3]` uint8, RGB."""
    if 'img' in info:
        is_bgr = getattr(split.dataset, 'channel_order', 'rgb') == 'bgr'
        return np.ascontiguousarray(info['img'][..., ::-1] if is_bgr else info['img'])
    return read(split, info['img_path'], channel_order='rgb')


def _count(split: Split, labels: list[int]) -> Iterator[str]:
    counts = Counter(labels)
    if len(counts) <= _MANY:
        yield from count_lines(
            'images by class', {split.class_name(i): str(n) for i, n in counts.most_common()})
    else:
        fewest, most = min(counts.values()), max(counts.values())
        yield f'  images by class: {fewest} to {most} in {len(counts)} classes'
    absent = [split.class_name(i) for i in range(len(split.classes)) if not counts[i]]
    if absent:
        yield from paragraph(f'without an image: {shorten(absent, 12)}')
