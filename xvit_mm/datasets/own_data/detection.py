"""Detectors on annotations in COCO's format."""
import json
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from xvit_mm.utils.config import ConfigError

from .common import SPLITS, evaluators, heads_get, loaders, metainfo, replace


@dataclass(frozen=True)
class Split:
    """An annotation file, with what the config needs to know about it."""

    file: Path
    images: Path
    classes: list[str]
    num_annotations: int
    num_without_mask: int


def use_coco_folder(cfg: Config, folder: Path) -> None:
    """Train and validate a detector of mmdet on a folder in COCO's format.

    Raises:
        ConfigError: no annotation file or image, or the two splits do not fit.
    """
    train = read_split(folder, 'train')
    # trainval.json is for training, although it has "val" in its name.
    splits = {'train': train, 'val': read_split(folder, 'val', other_than=train.file)}
    classes = train.classes
    if splits['val'].classes != classes:
        raise ConfigError(
            f'the categories of {splits["train"].file} and {splits["val"].file} differ: '
            f'{", ".join(classes)} and {", ".join(splits["val"].classes)}')
    for split in splits.values():
        # mmdet stops in the middle of a training or a validation at one that is missing.
        if 'mask_head' in str(cfg.model) and split.num_without_mask:
            raise ConfigError(
                f'{split.file} has no segmentation for {split.num_without_mask} of its '
                f'{split.num_annotations} annotations, and this model works with masks; take a '
                'config without masks, for instance a RetinaNet')
    for name, dataset in loaders(cfg):
        split = splits[name]
        training = dict(filter_cfg=dict(filter_empty_gt=True)) if name == 'train' else {}
        replace(
            dataset, type='CocoDataset', data_root=f'{folder}/',
            ann_file=split.file.relative_to(folder).as_posix(),
            data_prefix=dict(img=f'{split.images.relative_to(folder).as_posix()}/'),
            metainfo=metainfo(classes), test_mode=name == 'val', **training)
    for metric in evaluators(cfg):
        if 'ann_file' in metric:
            metric['ann_file'] = str(splits['val'].file)
    heads_get(cfg, len(classes))


def read_split(folder: Path, name: str, *, other_than: Path | None = None) -> Split:
    """Find and read the annotations of a split, in a file other than one that is taken already.

    Raises:
        ConfigError: there is not exactly one such file, it is not COCO's format, or its images are
            not there.
    """
    file = annotation_file(folder, name, other_than=other_than)
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        images, annotations = content['images'], content['annotations']
        # In the order of the file: so does mmdet number them.
        classes = [category['name'] for category in content['categories']]
        names = [image['file_name'] for image in images]
        num_without_mask = sum(not annotation.get('segmentation') for annotation in annotations)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} is not in COCO's format, which has images, annotations and "
                          f'categories ({type(error).__name__}: {error})') from error
    if not images or not annotations:
        raise ConfigError(f'{file} has {len(images)} images and {len(annotations)} annotations')
    return Split(file, image_folder(folder, file, names[0], name), classes, len(annotations),
                 num_without_mask)


def annotation_file(folder: Path, name: str, *, other_than: Path | None = None) -> Path:
    """Find the annotation file of a split: `annotations/train.json`, `train/annotations.json`, ...

    Raises:
        ConfigError: none, or several.
    """
    files = sorted({*folder.glob('*.json'), *folder.glob('*/*.json')} - {other_than})
    for word in SPLITS[name]:
        found = [file for file in files if word in file.relative_to(folder).as_posix().lower()]
        found = [file for file in found if not any(
            other in file.name for other in ('caption', 'keypoint', 'panoptic', 'image_info'))]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f'{folder} has several annotation files for {name}: '
                              f'{", ".join(str(file.relative_to(folder)) for file in found)}')
    besides = f' beside {other_than.relative_to(folder)}' if other_than else ''
    raise ConfigError(f'{folder} has no annotation file for {name}{besides}: a .json in it or in a '
                      f'folder of it, with one of {", ".join(SPLITS[name])} in its path')


def image_folder(folder: Path, file: Path, image: str, name: str) -> Path:
    """Find the folder that the image names of an annotation file are relative to.

    Raises:
        ConfigError: the image is in none of the customary ones.
    """
    places = [folder / word for word in SPLITS[name]]
    places += [folder / 'images' / word for word in SPLITS[name]]
    places += [folder / 'images', file.parent, folder]
    for place in places:
        if (place / image).is_file():
            return place
    raise ConfigError(f'{image!r}, the first image of {file}, is in none of '
                      f'{", ".join(str(place) for place in places)}')
