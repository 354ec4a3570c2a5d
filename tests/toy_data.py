"""Generated data in the layout of the data sets that a config names.

Data sets with an official layout get that one, whatever the config says, so that a wrong path in
the config shows; the others get the files and folders that the config names. `KINDS` holds one
writer for each data set class; subclasses are written as the nearest class in it.
"""
import json
import pickle
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from xvit_mm.datasets.checking import datasets_of
from xvit_mm.datasets.coco_format import coco_annotation
from xvit_mm.datasets.shapes import Scene, draw_scene

NUM_IMAGES = 2  # of each split


def make_toy_data(cfg: Config, root: Path) -> None:
    """Write a few images for every data set of a config, whose `data_root` must be `root`.

    Raises:
        NotImplementedError: there is no writer for a data set.
        ValueError: a data set of the config does not lie in `root`.
    """
    written = []
    for _, settings in datasets_of(cfg):
        if settings in written:
            continue
        written.append(settings)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build({**settings, 'pipeline': [], 'lazy_init': True})
        if not Path(dataset.data_root).is_relative_to(root):
            raise ValueError(
                f'{type(dataset).__name__} lies in {dataset.data_root!r}, not in {str(root)!r}')
        kind = next((cls.__name__ for cls in type(dataset).__mro__ if cls.__name__ in KINDS), None)
        if kind is None:
            raise NotImplementedError(
                f'no toy data for {type(dataset).__name__}: add a writer to KINDS in {__file__}; '
                f'there are {", ".join(KINDS)}')
        if kind == 'BaseSegDataset':
            # Which label of an own data set is to be ignored stands in the head alone.
            dataset.ignore_index = cfg.model.decode_head.get('ignore_index', 255)
        KINDS[kind](dataset)


def accept_toy_cifar10(monkeypatch: Any) -> None:
    """Have mmpretrain read batches of CIFAR-10 that do not have the official check sums."""
    from mmpretrain.datasets import CIFAR10
    for name in ('train_list', 'test_list'):
        batches = [[file, None] for file, _ in getattr(CIFAR10, name)]
        monkeypatch.setattr(CIFAR10, name, batches)


def toy_scene(name: str) -> Scene:
    """A scene with objects that depends only on the name."""
    return draw_scene(np.random.default_rng(zlib.crc32(name.encode())), num_objects=6)


# Detection.

# COCO's ids of its 80 classes have gaps.
_COCO_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})


def _write_coco(dataset: BaseDataset) -> None:
    """COCO 2017 itself, or, if the config has classes of its own, the files that it names."""
    classes = dataset.metainfo['classes']
    if classes != type(dataset).METAINFO['classes']:
        ids = list(range(1, len(classes) + 1))
        _write_coco_split(Path(dataset.ann_file), Path(dataset.data_prefix['img']), classes, ids)
        return
    root = Path(dataset.data_root)
    for split in ('train2017', 'val2017'):
        _write_coco_split(
            root / 'annotations' / f'instances_{split}.json', root / split, classes, _COCO_IDS)


def _write_coco_split(
    ann_file: Path, folder: Path, classes: tuple[str, ...], ids: list[int]
) -> None:
    images, annotations = [], []
    for image_id in range(1, NUM_IMAGES + 1):
        name = f'{image_id:012d}.jpg'
        scene = toy_scene(f'{folder.name}/{name}')
        _write_image(folder / name, scene.image)
        height, width = scene.image.shape[:2]
        images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        for mask in scene.masks:
            annotations.append(coco_annotation(
                mask,
                annotation_id=len(annotations) + 1,
                image_id=image_id,
                category_id=ids[(-1 - 7 * len(annotations)) % len(ids)]))
    categories = [{'id': number, 'name': name} for number, name in zip(ids, classes, strict=True)]
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(
        {'images': images, 'annotations': annotations, 'categories': categories}))


# Semantic segmentation. A split is the folder of the images, that of the labels, and a name.

_ADE20K = [
    ('images/training', 'annotations/training', 'ADE_train_{:08d}'),
    ('images/validation', 'annotations/validation', 'ADE_val_{:08d}'),
]
_CITYSCAPES = [
    ('leftImg8bit/train', 'gtFine/train', 'aachen/aachen_{:06d}_000019'),
    ('leftImg8bit/val', 'gtFine/val', 'lindau/lindau_{:06d}_000019'),
]
_LIP = [
    ('train_images', 'train_segmentations', '{:d}_1'),
    ('val_images', 'val_segmentations', '{:d}_2'),
]
_COCO_STUFF = [
    ('images/train2017', 'annotations/train2017', '{:012d}'),
    ('images/val2017', 'annotations/val2017', '{:012d}'),
]


def _write_ade20k(dataset: BaseDataset) -> None:
    # Label 0 is "other" and 1 to 150 are the classes, also for a config that forgets it.
    dataset.reduce_zero_label = True
    _write_official(dataset, _ADE20K)


def _write_official(dataset: BaseDataset, splits: list[tuple[str, str, str]]) -> None:
    for images, labels, stem in splits:
        root = Path(dataset.data_root)
        _write_segmentation_split(dataset, root / images, root / labels, stem)


def _write_segmentation(dataset: BaseDataset) -> None:
    prefix = dataset.data_prefix
    _write_segmentation_split(
        dataset, Path(prefix['img_path']), Path(prefix['seg_map_path']), 'image_{:04d}')


def _write_segmentation_split(
    dataset: BaseDataset, images: Path, labels: Path, stem: str
) -> None:
    for index in range(NUM_IMAGES):
        name = stem.format(index + 1)
        scene = toy_scene(f'{images.name}/{name}')
        # Half the size: test-time augmentation enlarges the original images.
        image, label = scene.image[::2, ::2], _label_map(dataset, scene, index)[::2, ::2]
        _write_image(images / f'{name}{dataset.img_suffix}', image)
        _write_image(labels / f'{name}{dataset.seg_map_suffix}', label)


def _label_map(dataset: BaseDataset, scene: Scene, index: int) -> np.ndarray:
    """`[H, W]` uint8: a class for the background and for each object, a border to be ignored."""
    first = int(dataset.reduce_zero_label)
    num_classes = len(dataset.metainfo['classes'])
    labels = np.full(scene.image.shape[:2], first + index, np.uint8)
    for number, mask in enumerate(scene.masks):
        # From the last class down: a model with too few would fail.
        labels[mask] = first + (-1 - 7 * number) % num_classes
    labels[:6] = labels[:, :6] = 0 if dataset.reduce_zero_label else dataset.ignore_index
    return labels


# Classification.


def _write_imagenet(dataset: BaseDataset) -> None:
    """A folder for each class, as mmpretrain demands, and images in the first few."""
    num_classes = len(dataset.metainfo['classes'])
    for split in ('train', 'val'):
        folders = [Path(dataset.data_root, split, f'n{i:08d}') for i in range(num_classes)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (folders[0], folders[-1]):
            scene = toy_scene(f'{split}/{folder.name}')
            _write_image(folder / f'{folder.name}_1.JPEG', scene.image)


def _write_cifar10(dataset: BaseDataset) -> None:
    """The official batches; only the first and the test batch hold images."""
    folder = Path(dataset.data_root, dataset.base_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for position, (name, _) in enumerate([*dataset.train_list, *dataset.test_list]):
        count = 0 if 'data_batch' in name and position else NUM_IMAGES
        images = [_tiny_image(f'{name}/{index}') for index in range(count)]
        batch = {
            'data': np.array(images, np.uint8).reshape(count, 3 * 32 * 32),
            'labels': [9 - 3 * index for index in range(count)],
            'filenames': [f'{name}_{index}.png' for index in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {'label_names': list(dataset.metainfo['classes'])}
    (folder / dataset.meta['filename']).write_bytes(pickle.dumps(meta))


def _tiny_image(name: str) -> np.ndarray:
    """`[3, 32, 32]` uint8, RGB."""
    return cv2.resize(toy_scene(name).image, (32, 32))[..., ::-1].transpose(2, 0, 1)


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, image)
    path.write_bytes(data.tobytes())


KINDS = {
    'CocoDataset': _write_coco,
    'ADE20KDataset': _write_ade20k,
    'CityscapesDataset': partial(_write_official, splits=_CITYSCAPES),
    'COCOStuffDataset': partial(_write_official, splits=_COCO_STUFF),
    'LIPDataset': partial(_write_official, splits=_LIP),
    'BaseSegDataset': _write_segmentation,
    'ImageNet': _write_imagenet,
    'CIFAR10': _write_cifar10,
}
