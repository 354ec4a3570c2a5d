"""`tools/check_dataset.py`: right data are counted and drawn."""
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from dataset_checks import (ADE, BCCD, CAMVID, CIFAR10, CIFAR10_CLASSES, CITYSCAPES, COCO, IMAGENET,
                            MASKS, STUFF, TOOL, TRAIN, check, toys)
from PIL import Image

from xvit_mm.datasets.checking import check_datasets, classification
from xvit_mm.datasets.checking.common import Split
from xvit_mm.utils.config import ConfigError, load_config

__all__ = ['check', 'toys']  # fixtures


@pytest.mark.parametrize('name, kind, found', [
    (COCO, 'CocoDataset, 80 classes', 'instances_train2017.json: 2 images, 10 annotations'),
    (MASKS, 'CocoDataset, 80 classes', 'boxes: 10, 0 of them crowds; 10 with a mask'),
    (BCCD, 'CocoDataset, 3 classes', 'RBC 2'),
    (ADE, 'ADE20KDataset, 150 classes', '2 images'),
    (CITYSCAPES, 'CityscapesDataset, 19 classes', '*_leftImg8bit.png: 2 images'),
    (STUFF, 'COCOStuffDataset, 171 classes', '*_labelTrainIds.png: a label map for each'),
    (CAMVID, 'BaseSegDataset, 11 classes', 'pixels by class: '),
    (IMAGENET, 'ImageNet, 1000 classes', 'images by class:'),
    (CIFAR10, 'CIFAR10, 10 classes', 'images by class: truck 1, frog 1 without an image: air'),
])
def test_right_data_are_counted_and_drawn(toys, check, tmp_path, name, kind, found):
    code, output, error = check(name, toys(name), '--samples', '1')
    assert code == 0 and 'error: ' not in error
    assert f'train: {kind}' in output and found in output
    assert output.endswith('test: as val no problem found')
    drawn = sorted((tmp_path / 'drawn').iterdir())
    assert [path.name for path in drawn] == ['train_sample_0.png', 'val_sample_0.png']
    assert all(cv2.imread(str(path)).std() > 5 for path in drawn)


def test_a_sample_shows_each_class_in_its_colour(toys, tmp_path):
    cfg = load_config(f'{CAMVID}.py', data_root=toys(CAMVID))
    list(check_datasets(cfg, tmp_path, num_samples=1))
    picture = cv2.imread(str(tmp_path / 'train_sample_0.png'))[..., ::-1].astype(float)
    label = cv2.imread(str(toys(CAMVID) / 'labels' / 'train' / 'image_0001.png'), -1)
    scale = 800 / min(label.shape)
    height, width = round(label.shape[0] * scale), round(label.shape[1] * scale)
    panels = picture[28:28 + height]
    image, drawn = panels[:, :width], panels[:, width:2 * width]
    large = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
    palette = np.array(cfg.metainfo.palette)
    counted = 0
    for number in set(np.unique(label)) - {11}:
        inside = cv2.erode((large == number).astype(np.uint8), np.ones((9, 9))) > 0
        expected = 0.3 * image[inside] + 0.7 * palette[number]
        assert np.abs(drawn[inside] - expected).mean() < 2
        counted += inside.sum()
    assert counted > 0.5 * large.size


def test_a_sample_shows_boxes(toys, tmp_path):
    cfg = load_config(f'{BCCD}.py', data_root=toys(BCCD))
    list(check_datasets(cfg, tmp_path, num_samples=1))
    picture = cv2.imread(str(tmp_path / 'train_sample_0.png'))[28:, :, ::-1].astype(float)
    content = json.loads((toys(BCCD) / 'annotations' / 'train.json').read_text())
    scale = picture.shape[1] / content['images'][0]['width']
    image = cv2.imread(str(toys(BCCD) / 'train' / content['images'][0]['file_name']))[..., ::-1]
    image = cv2.resize(image, picture.shape[1::-1]).astype(float)
    changed = np.abs(picture - image).max(-1) > 30
    for entry in content['annotations']:
        if entry['image_id'] == 1:
            left, top, width, height = (round(scale * x) for x in entry['bbox'])
            right, bottom = left + width, top + height
            inside = [slice(max(top, 3), bottom - 3), slice(max(left, 3), right - 3)]
            edges = [(inside[0], left), (inside[0], right), (top, inside[1]), (bottom, inside[1])]
            for rows, columns in edges:
                rows = rows if isinstance(rows, slice) else slice(max(rows - 2, 0), rows + 3)
                columns = (columns if isinstance(columns, slice)
                           else slice(max(columns - 2, 0), columns + 3))
                strip = changed[rows, columns]
                assert strip.any(0).mean() > 0.9 or strip.any(1).mean() > 0.9


def test_samples_of_an_earlier_check_go_and_no_other_file(toys, tmp_path):
    others = ['train_7.png', 'test_0001.png', 'val_sample_a.png', 'my_train_sample_1.png']
    for name in ('train_sample_7.png', *others):
        (tmp_path / name).write_bytes(b'old')
    cfg = load_config(f'{CIFAR10}.py', data_root=toys(CIFAR10))
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'none')
    with pytest.raises(ConfigError):
        list(check_datasets(cfg, tmp_path))
    assert sorted(path.name for path in tmp_path.glob('*.png')) == sorted(others)


def test_every_data_set_that_a_loader_joins_is_checked_and_drawn(toys, tmp_path):
    cfg = load_config(f'{BCCD}.py', data_root=toys(BCCD))
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', times=2, dataset=train), dict(val, pipeline=train.pipeline)])
    lines = list(check_datasets(cfg, tmp_path, num_samples=1))
    assert sum(line.startswith('train: CocoDataset, 3 classes') for line in lines) == 2
    assert {'train_sample_0.png', 'train_sample_1.png'} <= {p.name for p in tmp_path.iterdir()}


def test_an_image_that_is_drawn_but_was_not_opened_is_checked_too(toys, check, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(toys(ADE), root)
    next(root.glob('annotations/training/*2.png')).write_bytes(b'no image')
    assert check(ADE, root, '--max-files', '1', '--samples', '0')[0] == 0
    code, _, error = check(ADE, root, '--max-files', '1', '--samples', '2')
    assert code == 1 and 'error: train: ' in error and '2.png is damaged' in error


@pytest.mark.parametrize('arguments, message', [
    (['--max-files', '0'], '--max-files 0: give at least 1'),
    (['--samples', '-1'], '--samples -1: give at least 0'),
    (['--classes', 'a'], '--classes and --ignore-index go with --own-data'),
    (['--ignore-index', '3'], '--classes and --ignore-index go with --own-data'),
])
def test_arguments_without_a_meaning_are_refused(check, tmp_path, arguments, message):
    assert check(CAMVID, tmp_path, *arguments)[::2] == (1, f'error: {message}\n')


def test_a_folder_of_the_own_data_and_one_of_the_config_exclude_each_other(check, tmp_path):
    code, _, error = check(CAMVID, tmp_path, '--own-data', 'mine')
    assert code == 1 and f'--own-data mine and --data-root {tmp_path}: give one of them' in error


def test_other_files_in_a_class_folder_of_cifar10_are_passed_over(check, tmp_path):
    for path in (tmp_path / split / name for split in ('train', 'test')
                 for name in CIFAR10_CLASSES):
        path.mkdir(parents=True)
        (path / '.DS_Store').write_bytes(b'no image')
        Image.new('RGB', (32, 32), (200, 10, 20)).save(path / 'a.PNG')
    code, output, error = check(CIFAR10, tmp_path, '--samples', '0')
    assert code == 0 and 'train: CIFAR10, 10 classes' in output and '10 images' in output, error


def test_what_mmdet_drops_is_counted(toys, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(toys(COCO), root)
    file = root / TRAIN
    content = json.loads(file.read_text())
    content['annotations'][2]['area'] = 0
    content['annotations'][7]['ignore'] = 1
    file.write_text(json.dumps(content))
    cfg = load_config(f'{COCO}.py', data_root=root)
    report = ' '.join(' '.join(check_datasets(cfg, tmp_path, num_samples=0)).split())
    assert f'boxes: {10 - 2}, 0 of them crowds' in report
    assert 'mmdet drops 2 annotations, the first (id 3) with bbox [' in report


def test_two_classes_of_one_name_are_counted_apart(toys, tmp_path):
    """ImageNet has two classes called crane, the bird and the machine."""
    cfg = load_config(f'{CIFAR10}.py', data_root=toys(CIFAR10))
    split = Split('train', {}, SimpleNamespace(_metainfo=dict(classes=('crane', 'dog', 'crane'))),
                  cfg, 1)
    lines = ' '.join(classification._count(split, [0, 2, 2, 1]))
    assert 'crane (2) 2, crane (0) 1, dog 1' in lines
    assert 'without an image: crane (2)' in ' '.join(classification._count(split, [0, 1]))


def test_a_closed_pipe_ends_the_report_quietly(toys):
    tool = subprocess.Popen(
        [sys.executable, str(TOOL), f'{BCCD}.py', '--data-root', str(toys(BCCD)), '--samples', '0'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tool.stdout.close()
    assert 'Traceback' not in tool.stderr.read() and tool.wait() == 1


def test_own_data_are_checked(toys, check):
    code, output, error = check(COCO, None, '--own-data', str(toys(BCCD)))
    assert code == 0 and 'error: ' not in error
    assert 'train: CocoDataset, 3 classes' in output and 'RBC 2' in output
