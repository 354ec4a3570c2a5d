"""`tools/check_dataset.py`: right data pass, and each mistake is named with its remedy."""
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from toy_data import accept_toy_cifar10, make_toy_data

from xvit_mm.datasets.checking import check_datasets, classification
from xvit_mm.datasets.checking.common import Split
from xvit_mm.utils.config import ConfigError, load_config

TOOL = Path(__file__).parent.parent / 'tools' / 'check_dataset.py'
COCO, BCCD = 'retinanet_crossformer_s_coco', 'retinanet_crossformer_mini_bccd'
MASKS = 'mask_rcnn_crossformer_s_coco'
ADE, CITYSCAPES = 'fpn_crossformer_s_ade20k', 'fpn_crossformer_s_cityscapes'
STUFF, CAMVID = 'vtfpn_r50_cocostuff', 'fpn_r18_camvid'
IMAGENET, CIFAR10 = 'crossformer_s_imagenet', 'xformer_cifar10'
CIFAR10_CLASSES = 'airplane automobile bird cat deer dog frog horse ship truck'.split()


@pytest.fixture(scope='module')
def toys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a config to a folder with toy data, made once."""
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            make_toy_data(load_config(f'{name}.py', data_root=folders[name]), folders[name])
        return folders[name]

    return folder_of


@pytest.fixture
def check(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line: exit code, output and error of the tool."""
    accept_toy_cifar10(monkeypatch)
    monkeypatch.setattr('signal.signal', lambda *args: None)

    def run(name: str, root: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, 'argv', [
            str(TOOL), f'{name}.py', '--data-root', str(root), '--out', str(tmp_path / 'drawn'),
            *arguments])
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as end:
            code = end.code
        output, error = capsys.readouterr()
        return code, ' '.join(output.split()), error

    return run


# Right data.


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
    spoil('annotations/training/*2.png')(root)
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
    split = Split('train', {}, SimpleNamespace(metainfo=dict(classes=('crane', 'dog', 'crane'))),
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
    code, output, error = check(COCO, toys(COCO), '--own-data', str(toys(BCCD)))
    assert code == 0 and 'error: ' not in error
    assert 'train: CocoDataset, 3 classes' in output and 'RBC 2' in output


# Wrong data. Each case: the config, what is done to a copy of right data, and the message.


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


TRAIN = 'annotations/instances_train2017.json'
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
    (spoil('train2017/*1.jpg'), '000000000001.jpg is damaged, or no image. Remove or replace'),
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
    (ADE, spoil('images/training/*1.jpg'), '1.jpg is damaged, or no image. Remove or replace'),
    (ADE, spoil('annotations/training/*1.png'), '1.png is damaged, or no image. Remove or replace'),
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
    (IMAGENET, spoil('train/*/*.JPEG'), '_1.JPEG is damaged, or no image. Remove or replace'),
    (CIFAR10, remove('cifar-10-batches-py'), "the folder of the batches '.*' does not exist"),
    (CIFAR10, remove('cifar-10-batches-py/data_batch_3'), 'CIFAR10 cannot read it: RuntimeError'),
    (CIFAR10, lambda root: [(root / 'train' / name).mkdir(parents=True) for name in 'ab'],
     'has no folder for the classes airplane, .*; it has a, b. Name the folders as the classes'),
    (CIFAR10, damaged_class_folder, 'CIFAR10 cannot read it: .*/a.png is damaged, or no image'),
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
