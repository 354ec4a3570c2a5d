"""One of our configs on a folder of the user's: what is found, what is set, what is refused."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from xvit_mm.datasets.own_data import use_own_data
from xvit_mm.datasets.shapes import METAINFO, make_shapes_dataset
from xvit_mm.utils.config import ConfigError, load_config

CLASSES = list(METAINFO['classes'])


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('shapes')
    make_shapes_dataset(root, num_train=3, num_val=2, seed=0)
    return root


@pytest.fixture
def coco(shapes, tmp_path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / 'coco'))


def label_maps(root: Path, *, images: str, labels: str, suffix: str = '.png', top: int = 2) -> Path:
    """Two images for each split, with labels from 0 to `top`."""
    for split in ('train', 'val'):
        for kind in (images, labels):
            (root / kind.format(split)).mkdir(parents=True)
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 10, 3), np.uint8)
            Image.fromarray(pixels).save(root / images.format(split) / f'{i}.jpg')
            label = np.arange(80, dtype=np.uint8).reshape(8, 10) % (top + 1)
            Image.fromarray(label).save(root / labels.format(split) / f'{i}{suffix}')
    return root


def class_folders(root: Path, classes: str = 'cat dog emu') -> Path:
    for split in ('train', 'val'):
        for name in classes.split():
            (root / split / name).mkdir(parents=True)
            Image.new('RGB', (9, 7), (200, 10, 20)).save(root / split / name / 'a.png')
    return root


def built(cfg, loader: str):
    init_default_scope(cfg.default_scope)
    return DATASETS.build(cfg[loader].dataset)


# Detection.


@pytest.mark.parametrize('name', ['retinanet_crossformer_s_coco', 'yolov3_xformer_coco',
                                  'cascade_mask_rcnn_crossformer_s_3x_coco'])
def test_a_detector_learns_the_categories_of_the_file(coco, name):
    cfg = load_config(name)
    use_own_data(cfg, coco)
    train, val = built(cfg, 'train_dataloader'), built(cfg, 'val_dataloader')
    assert (len(train), len(val)) == (3, 2)
    assert list(train.metainfo['classes']) == CLASSES == list(val.metainfo['classes'])
    assert len({tuple(colour) for colour in train.metainfo['palette']}) == len(CLASSES)
    assert train[0]['inputs'].shape[0] == 3 and len(train[0]['data_samples'].gt_instances) > 0
    assert cfg.val_evaluator.ann_file == str(coco / 'annotations/instances_val2017.json')
    assert str(cfg.model).count("'num_classes': 5") == str(cfg.model).count("'num_classes'") > 0


def test_own_data_take_the_place_of_data_sets_that_are_joined(coco):
    cfg = load_config('retinanet_crossformer_s_coco')
    dataset = cfg.train_dataloader.dataset.to_dict()
    joined = dict(type='ConcatDataset', datasets=[dataset, dict(dataset, pipeline=[])])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=joined)
    use_own_data(cfg, coco)
    assert cfg.train_dataloader.dataset.dataset.pipeline == dataset['pipeline']
    train = built(cfg, 'train_dataloader')
    assert len(train) == 2 * 3 and list(train.metainfo['classes']) == CLASSES


@pytest.mark.parametrize('annotations, images', [
    ('annotations/{}.json', '{}'), ('{}.json', 'images/{}'), ('{}/_annotations.coco.json', '{}'),
    ('{}.json', 'images')])
def test_customary_layouts_are_recognised(shapes, tmp_path, annotations, images):
    for split in ('train', 'val'):
        target = tmp_path / annotations.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes / f'annotations/instances_{split}2017.json', target)
        shutil.copytree(shapes / f'{split}2017', tmp_path / images.format(split),
                        dirs_exist_ok=True)
    cfg = load_config('retinanet_crossformer_s_coco')
    use_own_data(cfg, tmp_path)
    assert [len(built(cfg, f'{split}_dataloader')) for split in ('train', 'val')] == [3, 2]
    assert Path(built(cfg, 'val_dataloader').get_data_info(0)['img_path']).is_file()


def test_categories_keep_the_order_of_the_file(coco):
    for file in coco.glob('annotations/*.json'):
        content = json.loads(file.read_text())
        content['categories'].reverse()
        file.write_text(json.dumps(content))
        names = {category['id']: category['name'] for category in content['categories']}
    cfg = load_config('retinanet_crossformer_s_coco')
    use_own_data(cfg, coco)
    train = built(cfg, 'train_dataloader')
    content = json.loads((coco / 'annotations' / 'instances_train2017.json').read_text())
    info = train.get_data_info(0)
    expected = [names[annotation['category_id']] for annotation in content['annotations']
                if annotation['image_id'] == info['img_id']]
    assert [train.metainfo['classes'][i['bbox_label']] for i in info['instances']] == expected


def test_a_file_for_training_and_validation_is_not_taken_for_validation(coco):
    folder = coco / 'annotations'
    (folder / 'instances_train2017.json').rename(folder / 'trainval.json')
    cfg = load_config('retinanet_crossformer_s_coco')
    use_own_data(cfg, coco)
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/trainval.json'
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'
    (folder / 'instances_val2017.json').rename(folder / 'more_test.json')
    # Its images are where they were.
    use_own_data(cfg, coco)
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/more_test.json'
    (folder / 'more_test.json').unlink()
    with pytest.raises(ConfigError, match='no annotation file for val beside .*trainval.json'):
        use_own_data(cfg, coco)


def test_what_does_not_fit_a_detector_is_named(coco, tmp_path):
    file = coco / 'annotations' / 'instances_train2017.json'
    content = json.loads(file.read_text())
    for annotation in content['annotations']:
        annotation['segmentation'] = []
    file.write_text(json.dumps(content))
    cfg = load_config('mask_rcnn_xformer_coco')
    with pytest.raises(ConfigError, match='instances_train2017.json has no segmentation'):
        use_own_data(cfg, coco)
    for name, index in (('train', None), ('val', 0)):
        # One without a mask is enough, in either file.
        change = coco / 'annotations' / f'instances_{name}2017.json'
        content = json.loads(change.read_text())
        for i, annotation in enumerate(content['annotations']):
            annotation['segmentation'] = [] if i == index else [[0, 0, 9, 0, 9, 9]]
        change.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match='instances_val2017.json has no segmentation for 1 of its'):
        use_own_data(cfg, coco)
    cfg = load_config('retinanet_crossformer_s_coco')
    with pytest.raises(ConfigError, match='--classes and --ignore-index are for segmentation'):
        use_own_data(cfg, coco, classes=['a'])
    file = coco / 'annotations' / 'instances_val2017.json'
    content = json.loads(file.read_text())
    content['categories'][0]['name'] = 'egg'
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match='categories of .* differ: ellipse, .* and egg'):
        use_own_data(cfg, coco)
    shutil.copy(file, coco / 'annotations' / 'val_again.json')
    with pytest.raises(ConfigError, match='several annotation files for val: .*, .*again.json'):
        use_own_data(cfg, coco)
    (coco / 'annotations' / 'val_again.json').unlink()
    for text in ('{"images": []}', json.dumps(content | {'images': [{'id': 1}]})):
        file.write_text(text)
        with pytest.raises(ConfigError, match="not in COCO's format"):
            use_own_data(cfg, coco)
    file.unlink()
    with pytest.raises(ConfigError, match='no annotation file for val beside annotations/.*: a .json'):
        use_own_data(cfg, coco)
    shutil.rmtree(coco / 'train2017')
    with pytest.raises(ConfigError, match='the first image of .*train2017.json, is in none of'):
        use_own_data(cfg, coco)
    with pytest.raises(ConfigError, match='is not a folder'):
        use_own_data(cfg, tmp_path / 'nowhere')


# Segmentation.


@pytest.mark.parametrize('layout', [
    dict(images='images/{}', labels='labels/{}'),
    dict(images='{}/images', labels='{}/masks', suffix='_mask.png'),
    dict(images='img_dir/{}', labels='ann_dir/{}')])
@pytest.mark.parametrize('name', ['segformer_xformer_ade20k', 'upernet_crossformer_s_ade20k'])
def test_a_segmentor_learns_the_named_classes(tmp_path, layout, name):
    root = label_maps(tmp_path, **layout)
    (root / 'classes.txt').write_text('sky\nroad\ncar\n')
    cfg = load_config(name)
    use_own_data(cfg, root)
    train, val = built(cfg, 'train_dataloader'), built(cfg, 'val_dataloader')
    assert train.metainfo['classes'] == ('sky', 'road', 'car') and len(train) == len(val) == 2
    # ADE20K's labels are shifted by one, those of a folder of one's own are not.
    label = val[0]['data_samples'].gt_sem_seg.data
    assert sorted(label.unique().tolist()) == [0, 1, 2]
    assert str(cfg.model).count("'num_classes': 3") == str(cfg.model).count("'num_classes'") > 0


def test_the_ignored_label_reaches_loss_metric_and_padding(tmp_path):
    root = label_maps(tmp_path, images='images/{}', labels='labels/{}', top=3)
    cfg = load_config('upernet_crossformer_s_ade20k')
    with pytest.raises(ConfigError, match='holds the label 3, but there are 3 classes, 0 to 2'):
        use_own_data(cfg, root, classes=['a', 'b', 'c'])
    use_own_data(cfg, root, classes=['a', 'b', 'c'], ignore_index=3)
    assert cfg.model.decode_head.ignore_index == cfg.model.auxiliary_head.ignore_index == 3
    assert cfg.model.data_preprocessor.seg_pad_val == cfg.val_evaluator.ignore_index == 3
    padded, = [step for step in cfg.train_dataloader.dataset.pipeline if step['type'] == 'Pad']
    assert padded.pad_val.seg == 3


def test_only_the_ignored_label_in_force_is_allowed(tmp_path):
    root = label_maps(tmp_path, images='images/{}', labels='labels/{}')
    Image.new('L', (10, 8), 255).save(root / 'labels/val/1.png')
    cfg = load_config('segformer_xformer_ade20k')
    with pytest.raises(ConfigError, match='1.png holds the label 255, but there are 3 classes'):
        use_own_data(cfg, root, classes=['a', 'b', 'c'], ignore_index=3)
    use_own_data(cfg, root, classes=['a', 'b', 'c'])


def test_a_label_belongs_to_the_image_whose_name_it_continues_least(tmp_path):
    root = label_maps(tmp_path, images='{}/images', labels='{}/masks', suffix='_mask.png')
    for path in root.glob('*/*/*'):
        number = {'0': '1', '1': '10'}[path.name[0]]
        path.rename(path.with_name(f'img{number}{path.name[1:]}'))
    cfg = load_config('segformer_xformer_ade20k')
    use_own_data(cfg, root, classes=['a', 'b', 'c'])
    assert cfg.train_dataloader.dataset.seg_map_suffix == '_mask.png'


def test_what_does_not_fit_a_segmentor_is_named(tmp_path):
    cfg = load_config('segformer_xformer_ade20k')
    with pytest.raises(ConfigError, match='names of the classes are not known: .* --classes'):
        use_own_data(cfg, tmp_path)
    with pytest.raises(ConfigError, match='no folder with images for train; looked for images'):
        use_own_data(cfg, tmp_path, classes=['a'])
    root = label_maps(tmp_path, images='images/{}', labels='labels/{}')
    Image.new('RGB', (4, 4)).save(root / 'labels/val/1.png')
    with pytest.raises(ConfigError, match='1.png is a colour image'):
        use_own_data(cfg, root, classes=['a', 'b', 'c'])
    (root / 'labels/val/1.png').write_bytes(b'no image')
    with pytest.raises(ConfigError, match='1.png is damaged, or not an image; remove or replace'):
        use_own_data(cfg, root, classes=['a', 'b', 'c'])
    (root / 'labels/val/1.png').unlink()
    with pytest.raises(ConfigError, match='1.jpg has no label 1.png'):
        use_own_data(cfg, root, classes=['a', 'b', 'c'])


# Classification.


@pytest.mark.parametrize('name', ['xformer_imagenet', 'vt_r18_cifar10', 'crossformer_s_imagenet'])
def test_a_classifier_learns_the_folders(tmp_path, name):
    cfg = load_config(name)
    use_own_data(cfg, class_folders(tmp_path))
    train = built(cfg, 'train_dataloader')
    assert list(train.metainfo['classes']) == ['cat', 'dog', 'emu'] and len(train) == 3
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == 3
    assert cfg.val_evaluator.topk == (1,) and cfg.data_preprocessor.to_rgb
    # Red, as it was written; files are read as BGR and turned by the preprocessor.
    assert built(cfg, 'val_dataloader')[0]['inputs'][:, 0, 0].tolist() == [20, 10, 200]


def test_what_does_not_fit_a_classifier_is_named(tmp_path):
    cfg = load_config('xformer_imagenet')
    with pytest.raises(ConfigError, match='no folder with images for train; looked for train'):
        use_own_data(cfg, tmp_path)
    root = class_folders(tmp_path)
    (root / 'train' / '.ipynb_checkpoints').mkdir()
    with pytest.raises(ConfigError, match='train/.ipynb_checkpoints would be a class; remove it'):
        use_own_data(cfg, root)
    (root / 'train' / '.ipynb_checkpoints').rmdir()
    shutil.rmtree(root / 'val' / 'emu')
    with pytest.raises(ConfigError, match="'emu' is a class in only one of"):
        use_own_data(cfg, root)
