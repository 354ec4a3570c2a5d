"""Segmentors on images and index images."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config

from xvit_mm.datasets.images import IMAGE_SUFFIXES, read_image
from xvit_mm.utils.config import ConfigError, dicts_in

from .common import SPLITS, evaluators, first_folder, heads_get, loaders, metainfo, replace

IMAGE_FOLDERS = ('images', 'image', 'img', 'imgs', 'img_dir')
LABEL_FOLDERS = ('labels', 'label', 'annotations', 'masks', 'mask', 'ann_dir')


@dataclass(frozen=True)
class Split:
    """The folders of images and labels, and how their files end."""

    images: Path
    labels: Path
    image_suffix: str
    label_suffix: str


def use_label_maps(
    cfg: Config, folder: Path, classes: Sequence[str] | None, ignore_index: int
) -> None:
    """Train and validate a segmentor of mmseg on images and index images.

    Raises:
        ConfigError: folders, labels or class names are missing, or a label has no class.
    """
    classes = list(classes or read_classes(folder))
    splits = {name: find_split(folder, name) for name in SPLITS}
    for split in splits.values():
        check_labels(split, len(classes), ignore_index)
    for name, dataset in loaders(cfg):
        split = splits[name]
        replace(
            dataset, type='BaseSegDataset', data_root=f'{folder}/',
            data_prefix=dict(
                img_path=split.images.relative_to(folder).as_posix(),
                seg_map_path=split.labels.relative_to(folder).as_posix()),
            img_suffix=split.image_suffix, seg_map_suffix=split.label_suffix,
            ignore_index=ignore_index, metainfo=metainfo(classes), test_mode=name == 'val')
    heads_get(cfg, len(classes))
    ignore(cfg, ignore_index)


def read_classes(folder: Path) -> list[str]:
    """Read the class names in `classes.txt`.

    Raises:
        ConfigError: there is no such file, or it is empty.
    """
    file = folder / 'classes.txt'
    lines = file.read_text(encoding='utf-8').split('\n') if file.is_file() else []
    classes = [line.strip() for line in lines if line.strip()]
    if not classes:
        raise ConfigError(f'the names of the classes are not known: list them with --classes, or '
                          f'in {file}, one in a line, that of label 0 first')
    return classes


def find_split(folder: Path, name: str) -> Split:
    """Find the folders of a split: `images/train` and `labels/train`, or `train/images`, ...

    Raises:
        ConfigError: a folder is missing or empty, or an image has no label.
    """
    images = first_folder(folder, places(IMAGE_FOLDERS, name), f'images for {name}')
    labels = first_folder(folder, places(LABEL_FOLDERS, name), f'labels for {name}')
    files = sorted(file for file in images.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ConfigError(f'{images} has no image; the formats are {", ".join(IMAGE_SUFFIXES)}')
    first = files[0]
    candidates = [file for file in sorted(labels.iterdir())
                  if file.name.startswith(first.stem) and file.suffix.lower() == '.png']
    if not candidates:
        raise ConfigError(f'{first} has no label: {labels} has no .png whose name begins with '
                          f'{first.stem!r}')
    # The longer names belong to other images: img10_mask.png begins with img1 as well.
    label = min(candidates, key=lambda file: len(file.name))
    split = Split(images, labels, first.suffix, label.name.removeprefix(first.stem))
    for file in files:
        if file.suffix != split.image_suffix:
            raise ConfigError(f'{images} holds both {split.image_suffix} and {file.suffix} files; '
                              'convert them to one format')
        if not (labels / f'{file.stem}{split.label_suffix}').is_file():
            raise ConfigError(f'{file} has no label {file.stem}{split.label_suffix} in {labels}')
    return split


def places(kinds: Sequence[str], name: str) -> list[str]:
    """Return the folders that may hold files of a kind."""
    words = SPLITS[name]
    return [path for word in words for kind in kinds
            for path in (f'{kind}/{word}', f'{word}/{kind}')]


def check_labels(split: Split, num_classes: int, ignore_index: int) -> None:
    """Check every label map of a split.

    Raises:
        ConfigError: one is damaged, not an index image, or holds a value that is no class.
    """
    for file in sorted(split.labels.glob(f'*{split.label_suffix}')):
        try:
            label = read_image(file, flag='unchanged', backend='pillow')
        except ValueError as error:
            raise ConfigError(f'{error}; remove or replace the label') from None
        if label.ndim != 2:
            raise ConfigError(f'{file} is a colour image, {label.shape}; a label holds the index '
                              'of a class in each pixel')
        wrong = [int(v) for v in np.unique(label) if v >= num_classes and v != ignore_index]
        if wrong:
            raise ConfigError(
                f'{file} holds the label {wrong[0]}, but there are {num_classes} classes, 0 to '
                f'{num_classes - 1}; name all classes, or say --ignore-index {wrong[0]} if it '
                'means "not labelled"')


def ignore(cfg: Config, ignore_index: int) -> None:
    """Set the ignored label in every part of a config that has one."""
    if cfg.model.get('data_preprocessor'):
        cfg.model.data_preprocessor.seg_pad_val = ignore_index
    for name in ('decode_head', 'auxiliary_head'):
        heads = cfg.model.get(name) or []
        for head in heads if isinstance(heads, (list, tuple)) else [heads]:
            head['ignore_index'] = ignore_index
    for metric in evaluators(cfg):
        metric['ignore_index'] = ignore_index
    pipelines = [dataset['pipeline'] for _, dataset in loaders(cfg)]
    for transform in dicts_in([*pipelines, cfg.get('tta_pipeline')]):
        if transform.get('type') == 'LoadAnnotations':
            transform.pop('reduce_zero_label', None)
        elif transform.get('type') == 'RandomCrop':
            transform['ignore_index'] = ignore_index
        elif transform.get('type') == 'Pad' and isinstance(transform.get('pad_val'), dict):
            transform['pad_val']['seg'] = ignore_index
