"""`tools/check_dataset.py`: each mistake in the data is named with its remedy.

Each case: the config, what is done to a copy of right data, and the message.
"""
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from dataset_checks import (ADE, CAMVID, CIFAR10, CIFAR10_CLASSES, CITYSCAPES, COCO, IMAGENET,
                            MASKS, STUFF, TRAIN, check, toys)

from xvit_mm.datasets.checking import check_datasets
from xvit_mm.utils.config import ConfigError, load_config

__all__ = ['check', 'toys']  # fixtures


def rewrite(file: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def mistake(root: Path) -> None:
        content = json.loads((root / file).read_text())
        change(content)
        (root / file).write_text(json.dumps(content))
    return mistake


def each(key: str, **entries) -> Callable[[dict], None]:
    return lambda content: [entry.update(entries) for entry in content[key]]


def remove(pattern: str) -> Callable[[Path], None]:
    def mistake(root: Path) -> None:
        path = sorted(root.glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return mistake


def rename(pattern: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda root: [
        path.rename(path.with_name(path.name.replace(old, new))) for path in root.glob(pattern)]


def draw_again(pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def mistake(root: Path) -> None:
        path = str(sorted(root.glob(pattern))[0])
        cv2.imwrite(path, change(cv2.imread(path, cv2.IMREAD_UNCHANGED)))
    return mistake


def spoil(pattern: str) -> Callable[[Path], None]:
    return lambda root: sorted(root.glob(pattern))[0].write_bytes(b'no image')


def turn(root: Path) -> None:
    """Write an image with the orientation of a camera that was held upright."""
    path = root / 'train2017' / '000000000001.jpg'
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x112] = 6
        image.save(path, exif=exif)


def xyxy(content: dict) -> None:
    for entry in content['annotations']:
        left, top, width, height = entry['bbox']
        entry['bbox'] = [left, top, 150 + left + width, 150 + top + height]


def other_category(content: dict) -> None:
    content['categories'].append({'id': 99, 'name': 'other'})
    each('annotations', category_id=99)(content)


def damaged_class_folder(root: Path) -> None:
    for name in CIFAR10_CLASSES:
        (root / 'train' / name).mkdir(parents=True)
    (root / 'train' / 'cat' / 'a.png').write_bytes(b'no image')


def flatten(root: Path) -> None:
    for path in list((root / 'val').glob('*/*')):
        path.rename(root / 'val' / path.name)
    for folder in (root / 'val').iterdir():
        if folder.is_dir():
            folder.rmdir()


COCO_MISTAKES = [
    (remove(TRAIN), "train: the annotation file '.*instances_train2017.json' does not exist; "
     '.*annotations holds instances_val2017.json. Name the folder of the data with --data-root'),
    (remove('val2017'), "val: the folder of the images '.*val2017/?' does not exist"),
    (remove('train2017/*1.jpg'), "train: 1 of 2 images .* are not in .*train2017, the first is "
     "'000000000001.jpg'. Download them"),
    (lambda root: (root / TRAIN).write_text('{'), 'is not JSON: .* Download or export it again'),
    (rewrite(TRAIN, lambda content: content.pop('annotations')), 'has no annotations. COCO'),
    (rewrite(TRAIN, lambda content: content['annotations'][3].pop('area')),
     'an entry of annotations has no area: .*mmdet needs id, .*area in each'),
    (rewrite(TRAIN, each('categories', name='cell')), '80 classes, of which the annotation file '
     'lacks person, .*; it has cell, .*Set metainfo=dict'),
    (rewrite(TRAIN, lambda content: content['categories'].reverse()), 'the order person, bicycle.*'
     'annotation file in the order toothbrush, .*how mmdet numbers them.*Set metainfo'),
    (rewrite(TRAIN, each('annotations', category_id=0)), r'10 annotations have a category_id that '
     r'none of the categories has, the first \(id 1\) 0; .*a shift by one'),
    (rewrite(TRAIN, each('annotations', image_id=77)), 'have a image_id that none of the images'),
    (rewrite(TRAIN, each('annotations', id=1)), 'two annotations have the same id'),
    (rewrite(TRAIN, lambda content: content['annotations'][3].update(bbox=[])),
     r'1 of 10 annotations have a bbox that is not four finite numbers, the first \(id 4\) '
     r'\[\]. Write'),
    (rewrite(TRAIN, lambda content: content['images'].append('7.jpg')),
     'an entry of images has no id: 7.jpg'),
    (rewrite(TRAIN, other_category), 'no image is left after filtering .*filter_empty_gt.*'
     'compare metainfo.classes with the annotations'),
    (rewrite(TRAIN, each('annotations', area=0)), r'no box is left: mmdet drops 10 annotations, '
     r'the first \(id 1\) with bbox \[.* and area 0. Dropped are boxes without area'),
    (rewrite(TRAIN, each('annotations', ignore=1)), 'no box is left: mmdet drops 10 annotations'),
    (rewrite(TRAIN, each('annotations', iscrowd=1)), 'no box is left: all are crowds'),
    (rewrite(TRAIN, each('annotations', bbox=[1, 2, float('nan'), 4])),
     r'10 of 10 annotations have a bbox that is not four finite numbers, .*nan'),
    (rewrite(TRAIN, each('annotations', bbox=[1, 2, float('inf'), 4])), 'not four finite numbers'),
    (rewrite(TRAIN, each('annotations', bbox=[1, 2, True, 4])), 'not four finite numbers'),
    (rewrite(TRAIN, each('annotations', area=float('nan'))),
     'an entry of annotations has area=nan: .*Write area as a finite number'),
    (rewrite(TRAIN, each('annotations', bbox=[-90, 5, 20, 20])), '10 of 10 boxes reach beyond'),
    (rewrite(TRAIN, each('annotations', bbox=[5, -90, 20, 20])), '10 of 10 boxes reach beyond'),
    (rewrite(TRAIN, lambda content: content['images'][0].update(id='1')),
     "an entry of images has id='1': .*Write id as a whole number"),
    (rewrite(TRAIN, each('annotations', category_id='1')), "category_id='1'"),
    (rewrite(TRAIN, each('images', width='640')), "width='640': .*Write width as a number"),
    (rewrite(TRAIN, each('images', height=None)), 'height=None'),
    (rewrite(TRAIN, each('images', file_name=None)), 'file_name=None: .*Write file_name as a text'),
    (rewrite(TRAIN, each('categories', name=3)), 'an entry of categories has name=3'),
    (rewrite(TRAIN, lambda content: content.update(images=7)), 'has no images. COCO'),
    (lambda root: ((root / TRAIN).unlink(), (root / TRAIN).mkdir()),
     'instances_train2017.json is a folder. Set ann_file'),
    (lambda root: (root / TRAIN).write_text('[' * 200_000), 'nests its lists too deeply'),
    (rewrite(TRAIN, xyxy), r'10 of 10 boxes reach beyond their image.*\[left, top, width, height'),
    (draw_again('train2017/*1.jpg', lambda image: image[:99, :88]),
     '000000000001.jpg is 88 x 99, but the annotation file says'),
    (turn, r'000000000001.jpg is (\d+) x (\d+), but the annotation file says \2 x \1\.'),
    (spoil('train2017/*1.jpg'), '000000000001.jpg is damaged, or not an image. Remove or replace'),
]
MASK_MISTAKES = [
    (rewrite(TRAIN, each('annotations', segmentation=[])),
     'the model learns masks, but 10 of 10 annotations have no segmentation, .*RetinaNet'),
]
SEGMENTATION_MISTAKES = [
    (ADE, remove('images'), "train: the folder of the images '.*images/training/?' does not exist"),
    (ADE, rename('images/training/*', '.jpg', '.jpeg'),
     "holds no file that ends in '.jpg'; there are files of .jpeg. Set img_suffix"),
    (ADE, remove('annotations/training/*1.png'), '1 of 2 images have no label map; the first is '
     "ADE_train_00000001.jpg, .*The name must be that of the image with '.png' in the place"),
    (ADE, draw_again('annotations/training/*', lambda label: label[:40]), 'is .* x 40, but its '
     'image is .*must have the same size'),
    (ADE, draw_again('annotations/training/*', lambda label: np.stack([label] * 3, -1)),
     'is a colour picture, .*the number of its class'),
    (ADE, draw_again('annotations/*/*', lambda label: np.where(label == 0, 151, label)),
     'has the label 151; there are 150 classes, 1 to 150. Number the classes from 1'),
    (ADE, lambda root: [draw_again(f'annotations/training/*{i}.png', np.zeros_like)(root)
                        for i in (1, 2)], 'no pixel of the labels has a class'),
    (ADE, spoil('images/training/*1.jpg'), '1.jpg is damaged, or not an image. Remove or replace'),
    (ADE, spoil('annotations/training/*1.png'), '1.png is damaged, or not an image. Remove or replace'),
    (CITYSCAPES, rename('gtFine/*/*/*', 'labelTrainIds', 'labelIds'), '2 of 2 images have no label '
     'map; .*The download has labelIds only; .*CITYSCAPES_DATASET=.* csCreateTrainIdLabelImgs'),
    (STUFF, rename('annotations/*/*', '_labelTrainIds', ''),
     "The download has ids with gaps; make labelTrainIds in .* with mmseg's coco_stuff164k.py"),
    (CAMVID, draw_again('labels/train/*', lambda label: np.where(label == 0, 12, label)),
     'has the label 12; there are 11 classes, 0 to 10. Number the classes from 0'),
    # The head of this config ignores label 11, and no other.
    (CAMVID, draw_again('labels/train/*', lambda label: np.where(label == 0, 255, label)),
     'has the label 255; there are 11 classes, .* what is to be ignored gets 11, or set ignore_'),
]
CLASSIFICATION_MISTAKES = [
    (IMAGENET, remove('train/n00000007'), 'train has 999 folders for 1000 classes: n00000000'),
    (IMAGENET, flatten, 'val: .*val has no folder for each class but 2 files. Sort the images'),
    (IMAGENET, spoil('train/*/*.JPEG'), '_1.JPEG is damaged, or not an image. Remove or replace'),
    (CIFAR10, remove('cifar-10-batches-py'), "the folder of the batches '.*' does not exist"),
    (CIFAR10, remove('cifar-10-batches-py/data_batch_3'), 'CIFAR10 cannot read it: RuntimeError'),
    (CIFAR10, lambda root: [(root / 'train' / name).mkdir(parents=True) for name in 'ab'],
     'has no folder for the classes airplane, .*; it has a, b. Name the folders as the classes'),
    (CIFAR10, damaged_class_folder, 'CIFAR10 cannot read it: .*/a.png is damaged, or not an image'),
]


@pytest.mark.parametrize('name, mistake, message', [
    *((COCO, *case) for case in COCO_MISTAKES), *((MASKS, *case) for case in MASK_MISTAKES),
    *SEGMENTATION_MISTAKES, *CLASSIFICATION_MISTAKES])
def test_a_mistake_in_the_data_is_named(toys, check, tmp_path, name, mistake, message):
    root = tmp_path / 'data'
    shutil.copytree(toys(name), root)
    mistake(root)
    code, output, error = check(name, root, '--samples', '0')
    assert code == 1 and 'no problem' not in output
    assert error.count('\n') == 1 and re.match(f'error: (?=train|val).*{message}', error), error


@pytest.mark.parametrize('name, option, message', [
    (COCO, 'val_evaluator.ann_file=other.json', "val_evaluator.ann_file is 'other.json', but the"),
    (COCO, 'model.bbox_head.num_classes=3', 'model.bbox_head.num_classes is 3, but the data set '
     'has 80 classes .*Set model.bbox_head.num_classes to 80'),
    (CAMVID, 'model.decode_head.num_classes=12', 'num_classes is 12, but the data set has 11'),
    (ADE, 'train_dataloader.dataset.reduce_zero_label=False', 'means "other" by label 0.*Remove'),
    (CAMVID, 'model.decode_head.ignore_index=255', 'has the label 11; there are 11 classes, 0 to '
     '10. If label 0 means "other", .*; if 11 means "ignore", set ignore_index=11'),
    (ADE, 'model.decode_head.ignore_index=3', 'has the label 0; there are 150 classes, 1 to 150. '
     'mmseg makes 255 of it, but the head ignores 3: set ignore_index=255 in head and metric'),
    (COCO, 'train_dataloader.dataset.type=mmpretrain.VOC', 'train: the data set cannot be built'),
])
def test_a_config_that_does_not_fit_the_data_is_named(toys, check, name, option, message):
    code, _, error = check(name, toys(name), '--samples', '0', '--cfg-options', option)
    assert code == 1 and error.count('\n') == 1
    assert re.match(f'error: (?=train|val).*{message}', error), error


def test_a_kind_of_data_set_without_a_check_is_named(toys, tmp_path):
    cfg = load_config(f'{CAMVID}.py', data_root=toys(CAMVID))
    cfg.train_dataloader.dataset.type = 'BaseCDDataset'
    with pytest.raises(ConfigError, match='does not know BaseCDDataset; it knows CocoDataset'):
        list(check_datasets(cfg, tmp_path))
