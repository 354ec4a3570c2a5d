"""The generated data set: valid COCO, exact masks, deterministic, whole or absent."""
import json
import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from xvit_mm.datasets import METAINFO, draw_scene, make_shapes_dataset, shapes
from xvit_mm.datasets.coco_format import coco_annotation

REPOSITORY = Path(__file__).resolve().parents[1]
COUNTS = {'train2017': 24, 'val2017': 12}


def make(root, **settings):
    return make_shapes_dataset(root, **{'num_train': 24, 'num_val': 12, 'seed': 3, **settings})


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'demo'
    assert make(root)
    return root


@pytest.fixture(scope='module', params=COUNTS)
def split(request, root):
    return request.param, COCO(str(root / 'annotations' / f'instances_{request.param}.json'))


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    make(tmp_path / 'again')
    assert contents(tmp_path / 'again') == contents(root)


def test_another_seed_gives_other_images(root, tmp_path):
    make(tmp_path / 'other', seed=4)
    ours, theirs = contents(root), contents(tmp_path / 'other')
    assert not any(ours[name] == theirs[name] for name in ours if name.endswith('.jpg'))


def test_a_larger_set_begins_with_the_smaller_one(root, tmp_path):
    make(tmp_path / 'larger', num_train=26)
    smaller, larger = contents(root), contents(tmp_path / 'larger')
    assert all(larger[name] == data for name, data in smaller.items() if name.endswith('.jpg'))


def test_train_and_val_share_no_image(root):
    images = [data for name, data in contents(root).items() if name.endswith('.jpg')]
    assert len(images) == len(set(images)) == sum(COUNTS.values())


def test_images_are_those_of_the_annotations(root, split):
    name, coco = split
    assert len(coco.imgs) == COUNTS[name]
    files = {path.name for path in (root / name).iterdir()}
    assert files == {image['file_name'] for image in coco.imgs.values()}
    for image in coco.imgs.values():
        pixels = cv2.imread(str(root / name / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3)


def test_categories_are_the_classes(split):
    _, coco = split
    assert tuple(coco.cats[index]['name'] for index in sorted(coco.cats)) == METAINFO['classes']
    assert len(METAINFO['palette']) == len(METAINFO['classes'])
    assert {annotation['category_id'] for annotation in coco.anns.values()} == set(coco.cats)


def test_boxes_and_areas_are_those_of_the_masks(split):
    _, coco = split
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rle = coco.annToRLE(annotation)
        assert annotation['area'] == mask.sum() == mask_utils.area(rle) > 0
        assert annotation['bbox'] == mask_utils.toBbox(rle).tolist()
        assert annotation['iscrowd'] == 0


def test_visible_parts_do_not_overlap(split):
    _, coco = split
    for image_id in coco.imgs:
        masks = [coco.annToMask(coco.anns[index]) for index in coco.getAnnIds(image_id)]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_some_images_hold_no_object(split):
    _, coco = split
    num_empty = sum(not coco.getAnnIds(image_id) for image_id in coco.imgs)
    assert 1 <= num_empty <= len(coco.imgs) / 8


def test_objects_come_in_all_coco_sizes_on_non_square_images(split):
    _, coco = split
    areas = np.array([annotation['area'] for annotation in coco.anns.values()])
    shares = [np.mean(areas < 32**2), np.mean((32**2 < areas) & (areas < 96**2)),
              np.mean(areas > 96**2)]
    assert all(share > 0 for share in shares)
    assert any(image['height'] != image['width'] for image in coco.imgs.values())
    assert all(160 <= image[side] <= 200 for image in coco.imgs.values()
               for side in ('height', 'width'))


def test_annotations_are_the_masks_that_were_drawn(root):
    coco = COCO(str(root / 'annotations' / 'instances_train2017.json'))
    for index, image_id in enumerate(sorted(coco.imgs)):
        scene = shapes._numbered_scene(3, 0, index)
        annotations = [coco.anns[number] for number in coco.getAnnIds(image_id)]
        assert [entry['category_id'] - 1 for entry in annotations] == scene.labels.tolist()
        for annotation, mask in zip(annotations, scene.masks):
            np.testing.assert_array_equal(coco.annToMask(annotation).astype(bool), mask)


@pytest.mark.parametrize('density', [0.3, 0.5, 0.7, 0.95])
def test_box_area_and_mask_of_any_annotation_are_those_of_the_pixels(density):
    rng = np.random.default_rng(int(100 * density))
    for _ in range(20):
        mask = rng.random((17, 23)) < density  # with holes, corner contacts, single pixels
        annotation = json.loads(json.dumps(
            coco_annotation(mask, annotation_id=1, image_id=1, category_id=1)))
        rows, columns = np.nonzero(mask)
        left, top = columns.min(), rows.min()
        assert annotation['bbox'] == [
            left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert annotation['area'] == mask.sum()
        decoded = mask_utils.decode(annotation['segmentation'])
        np.testing.assert_array_equal(decoded.astype(bool), mask)


def test_an_object_without_pixels_is_refused():
    with pytest.raises(ValueError, match='annotation 7 of image 2'):
        coco_annotation(np.zeros((4, 4), bool), annotation_id=7, image_id=2, category_id=1)


def square(left, top, side):
    return [np.array([(left, top), (left + side, top), (left + side, top + side),
                      (left, top + side)], float)]


def test_a_later_object_hides_an_earlier_one(monkeypatch):
    outlines = iter([square(20, 20, 60), square(50, 20, 60)])
    monkeypatch.setattr(shapes, '_outline', lambda *_: next(outlines))
    scene = draw_scene(np.random.default_rng(0), num_objects=2)
    first, second = (np.argwhere(mask) for mask in scene.masks)
    assert (first.min(0).tolist(), first.max(0).tolist()) == ([20, 20], [79, 49])
    assert (second.min(0).tolist(), second.max(0).tolist()) == ([20, 50], [79, 109])
    overlap, seen = scene.image[25:75, 55:75], scene.image[25:75, 85:105]
    hidden = scene.image[25:75, 25:45]
    distance = np.abs(overlap.mean((0, 1)) - seen.mean((0, 1))).max()
    assert distance < 0.5 * np.abs(overlap.mean((0, 1)) - hidden.mean((0, 1))).max()


@pytest.mark.parametrize(('shift', 'num_left'), [(24, 1), (36, 2)])
def test_no_object_hides_more_than_half_of_another(monkeypatch, shift, num_left):
    outlines = iter([square(20, 20, 60), square(20 + shift, 20, 60)])
    monkeypatch.setattr(shapes, '_outline', lambda *_: next(outlines))
    scene = draw_scene(np.random.default_rng(0), num_objects=2)
    assert len(scene.masks) == len(scene.labels) == num_left


def test_nothing_is_done_where_the_set_is_there(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert not make(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_a_damaged_set_is_made_again(root, tmp_path):
    make(tmp_path / 'set')
    next((tmp_path / 'set' / 'val2017').iterdir()).unlink()
    assert make(tmp_path / 'set')
    assert contents(tmp_path / 'set') == contents(root)


def test_own_set_with_other_settings_is_replaced(root, tmp_path):
    make(tmp_path / 'set', num_train=2, num_val=1)
    assert make(tmp_path / 'set')
    assert contents(tmp_path / 'set') == contents(root)
    assert [path.name for path in tmp_path.iterdir()] == ['set']


@pytest.mark.parametrize('is_there', [False, True])
def test_an_interruption_leaves_nothing_half_made(monkeypatch, tmp_path, is_there):
    root = tmp_path / 'set'
    if is_there:
        make(root, num_train=2, num_val=1)
    before = contents(tmp_path)
    written = []

    def interrupted(path, image):
        written.append(path)
        path.write_bytes(b'')
        if len(written) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(shapes, '_write_jpeg', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(root)
    assert contents(tmp_path) == before
    assert root.exists() == is_there


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    old, fresh = tmp_path / '.set.partial-1', tmp_path / '.set.partial-2'
    for folder in (old, fresh):
        folder.mkdir()
    os.utime(old, (0, 0))
    make(tmp_path / 'set', num_train=1, num_val=1)
    assert fresh.exists() and not old.exists()


def test_an_empty_folder_is_used(tmp_path):
    assert make(tmp_path, num_train=1, num_val=1)
    assert (tmp_path / 'annotations' / 'instances_val2017.json').is_file()


@pytest.mark.parametrize('own_first', [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path, own_first):
    root = tmp_path / 'set'
    if own_first:
        make(root, num_train=1, num_val=1)
    root.mkdir(exist_ok=True)
    (root / 'thesis.txt').write_text('years of work')
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='thesis.txt'):
        make(root)
    assert contents(tmp_path) == before


@pytest.mark.parametrize('settings', [{'num_train': 0}, {'num_val': -1}, {'seed': -5}])
def test_impossible_settings_are_refused(tmp_path, settings):
    (name, value), = settings.items()
    with pytest.raises(ValueError, match=f'{name} is {value}'):
        make(tmp_path / 'set', **settings)
    assert not list(tmp_path.iterdir())


def test_mmdet_loads_the_masks(root):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    dataset = CocoDataset(
        data_root=str(root), ann_file='annotations/instances_train2017.json',
        data_prefix={'img': 'train2017/'}, metainfo=METAINFO, pipeline=[], test_mode=True)
    load = LoadAnnotations(with_mask=True)
    coco = COCO(str(root / 'annotations' / 'instances_train2017.json'))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        results = load({**info, 'ori_shape': (info['height'], info['width'])})
        annotations = [coco.anns[number] for number in coco.getAnnIds(info['img_id'])]
        assert not results['gt_ignore_flags'].any()
        areas = results['gt_masks'].to_ndarray().sum((1, 2))
        assert areas.tolist() == [entry['area'] for entry in annotations]


def command(monkeypatch, capsys, *arguments):
    """Exit code, output and errors of the command-line tool."""
    tool = REPOSITORY / 'tools' / 'make_demo_data.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(tool), run_name='__main__')
    return exit_info.value.code, *capsys.readouterr()


def test_the_command_says_what_it_made(monkeypatch, capsys, tmp_path):
    arguments = ('--root', tmp_path / 'set', '--train', 3, '--val', 2)
    code, output, errors = command(monkeypatch, capsys, *arguments)
    assert (code, errors) == (0, '')
    annotations = json.loads((tmp_path / 'set/annotations/instances_train2017.json').read_text())
    assert f'train2017: 3 images, {len(annotations["annotations"])} objects' in output
    assert 'val2017: 2 images' in output


def test_the_command_fails_with_one_clear_line(monkeypatch, capsys, tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    code, output, errors = command(monkeypatch, capsys, '--root', tmp_path)
    assert code != 0 and not output
    assert errors.count('\n') == 1 and 'thesis.txt' in errors
