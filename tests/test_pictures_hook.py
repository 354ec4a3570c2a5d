"""Pictures of predictions, drawn through the data sets and visualizers of the three families."""
import json
import os

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from xvit_mm.engine.hooks import pictures

HEIGHT, WIDTH = 60, 90
TRUE_BOX, PREDICTED_BOX = (10, 20, 40, 50), (50, 5, 80, 35)  # x0, y0, x1, y1
RED = (255, 0, 0)
SCALE = 480 / HEIGHT
CAPTION = 28


class Replay(BaseModel):
    """Returns predictions made from the data samples by `predict`."""

    def __init__(self, predict, **kwargs):
        super().__init__(**kwargs)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.predict = predict

    def forward(self, inputs, data_samples, mode='tensor'):
        return [self.predict(sample) for sample in data_samples]


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        pass

    def evaluate(self, size):
        return {}

    def compute_metrics(self, results):
        return {}


def validate(work_dir, predict, dataset, visualizer, scope, collate='pseudo_collate', **hook):
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                  dataset=dataset, collate_fn=dict(type=collate))
    settings = dict(
        work_dir=str(work_dir),
        visualizer=dict(type=visualizer, vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[dict(type='xvit_mm.PicturesHook', **hook)],
        default_scope=scope,
        log_level='WARNING',
        experiment_name=f'pictures_{os.urandom(4).hex()}',
    )
    runner = Runner(Replay(predict), val_dataloader=loader, val_cfg={},
                    val_evaluator=[NoMetric()], **settings)
    runner.val()
    return sorted(path.name for path in (work_dir / 'pictures').glob('[!.]*'))


def gray_images(folder, count):
    folder.mkdir(parents=True)
    for index in range(count):
        cv2.imwrite(str(folder / f'{index}.png'), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def detection_set(root, pipeline):
    gray_images(root / 'images', 5)
    x0, y0, x1, y1 = TRUE_BOX
    images = [dict(id=index, file_name=f'{index}.png', height=HEIGHT, width=WIDTH)
              for index in range(5)]
    annotations = [
        dict(id=index + 1, image_id=index, category_id=1, iscrowd=0, area=(x1 - x0) * (y1 - y0),
             bbox=[x0, y0, x1 - x0, y1 - y0], segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]])
        for index in range(5)]
    (root / 'all.json').write_text(json.dumps(dict(
        images=images, annotations=annotations, categories=[dict(id=1, name='thing')])))
    return dict(type='CocoDataset', data_root=str(root), ann_file='all.json', test_mode=True,
                data_prefix=dict(img='images/'), pipeline=pipeline,
                metainfo=dict(classes=('thing',), palette=[RED]))


def detection_pipeline(order, with_mask):
    steps = dict(
        load=dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
        resize=dict(type='Resize', scale=(225, 300), keep_ratio=True),
        pad=dict(type='Pad', size_divisor=64))
    return [dict(type='LoadImageFromFile'), *(steps[name] for name in order.split()),
            dict(type='PackDetInputs')]


def detect(sample):
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([PREDICTED_BOX, (0, 0, 9, 9)], dtype=torch.float),
        labels=torch.zeros(2, dtype=torch.long), scores=torch.tensor([0.9, 0.2]))
    return sample


def reddish_extent(panel):
    """x0, y0, x1, y1 of the pixels that are much more red than gray."""
    blue, green, red = (panel[..., channel].astype(int) for channel in range(3))
    rows, columns = np.nonzero((red > 150) & (green < 60) & (blue < 60))
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()])


def panels(path):
    picture = cv2.imread(str(path))[CAPTION:]
    assert picture.shape[1] == 2 * WIDTH * SCALE
    return np.split(picture[:480], 2, axis=1)


@pytest.mark.parametrize('with_mask', [False, True])
@pytest.mark.parametrize('order', ['resize load', 'load resize', 'load resize pad', 'load'])
def test_detections_stand_beside_ground_truth_in_its_place(tmp_path, order, with_mask):
    pytest.importorskip('mmdet')
    dataset = detection_set(tmp_path, detection_pipeline(order, with_mask))
    names = validate(tmp_path / 'work', detect, dataset, 'DetLocalVisualizer', 'mmdet',
                     max_images=1)
    assert names == ['val_000_0.png']
    truth, prediction = panels(tmp_path / 'work' / 'pictures' / names[0])
    if not with_mask:  # masks are drawn in a jittered colour
        np.testing.assert_allclose(reddish_extent(truth), SCALE * np.array(TRUE_BOX), atol=3)
    inside = truth[int(35 * SCALE), int(25 * SCALE)]
    assert (np.ptp(inside.astype(int)) > 20) == with_mask
    np.testing.assert_allclose(reddish_extent(prediction), SCALE * np.array(PREDICTED_BOX), atol=3)


def test_a_box_beyond_the_image_does_not_distort_the_picture(tmp_path):
    pytest.importorskip('mmdet')

    def detect_too_much(sample):
        detect(sample).pred_instances.bboxes[0] = torch.tensor([50., 5, 200, 35])
        return sample

    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))
    names = validate(tmp_path / 'work', detect_too_much, dataset, 'DetLocalVisualizer', 'mmdet')
    _, prediction = panels(tmp_path / 'work' / 'pictures' / names[0])
    expected = SCALE * np.array([50, 5, WIDTH, 35])
    np.testing.assert_allclose(reddish_extent(prediction), expected, atol=3)


def test_the_latest_validation_replaces_earlier_pictures(tmp_path):
    pytest.importorskip('mmdet')
    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))
    arguments = (tmp_path / 'work', detect, dataset, 'DetLocalVisualizer', 'mmdet')
    assert len(validate(*arguments)) == 5
    assert validate(*arguments, max_images=3) == [f'val_{i:03d}_{i}.png' for i in range(3)]


def test_samples_come_from_all_over_the_set(tmp_path):
    pytest.importorskip('mmdet')
    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))
    names = validate(tmp_path / 'work', detect, dataset, 'DetLocalVisualizer', 'mmdet',
                     max_images=2)
    assert names == ['val_000_0.png', 'val_001_2.png']


def test_only_the_folder_of_the_hook_itself_loses_files(tmp_path):
    pytest.importorskip('mmdet')
    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))
    own, given = tmp_path / 'work' / 'pictures', tmp_path / 'given'
    for folder in (own, given):
        folder.mkdir(parents=True)
        for name in ('val_009_old.png', '.partial_val_009_old.png', 'val_notes.png'):
            (folder / name).write_bytes(b'old')
    for folder in ('pictures', str(given), '../given'):
        validate(tmp_path / 'work', detect, dataset, 'DetLocalVisualizer', 'mmdet', max_images=1,
                 folder=folder)
    assert {path.name for path in own.iterdir()} == {'val_000_0.png', 'val_notes.png'}
    assert len(list(given.iterdir())) == 4


def test_a_picture_that_cannot_be_written_is_reported(capfd, monkeypatch, tmp_path):
    pytest.importorskip('mmdet')
    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))

    def read_only(path, panel_width, legend):
        path.unlink()
        path.mkdir()
        write_frame(path, panel_width, legend)

    write_frame = pictures._add_frame
    monkeypatch.setattr(pictures, '_add_frame', read_only)
    monkeypatch.setattr(pictures.cv2, 'imread', lambda path: np.zeros((9, 9, 3), np.uint8))
    assert not validate(tmp_path / 'work', detect, dataset, 'DetLocalVisualizer', 'mmdet')
    assert 'a picture was not written: [Errno 21]' in capfd.readouterr().out


SEGMENTS = np.kron([[0, 1], [2, 1]], np.ones((HEIGHT // 2, WIDTH // 2))).astype(np.uint8)


@pytest.mark.parametrize('order', ['resize load', 'load resize'])
def test_segmentations_stand_beside_ground_truth_in_its_place(tmp_path, order):
    pytest.importorskip('mmseg')
    gray_images(tmp_path / 'images', 2)
    (tmp_path / 'labels').mkdir()
    for index in range(2):
        cv2.imwrite(str(tmp_path / 'labels' / f'{index}.png'), SEGMENTS)
    steps = dict(load=dict(type='LoadAnnotations'),
                 resize=dict(type='Resize', scale=(225, 300), keep_ratio=True))
    palette = [[0, 0, 0], [0, 255, 0], [0, 0, 255]]
    dataset = dict(
        type='BaseSegDataset', data_root=str(tmp_path), img_suffix='.png', test_mode=True,
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b', 'c'), palette=palette),
        pipeline=[dict(type='LoadImageFromFile'), *(steps[name] for name in order.split()),
                  dict(type='PackSegInputs')])

    def segment(sample):
        from mmseg.structures import SegDataSample
        answer = SegDataSample(metainfo=sample.metainfo)
        answer.gt_sem_seg = sample.gt_sem_seg
        answer.pred_sem_seg = PixelData(data=torch.from_numpy(2 - SEGMENTS).long()[None])
        return answer

    names = validate(tmp_path / 'work', segment, dataset, 'SegLocalVisualizer', 'mmseg')
    assert names == ['val_000_0.png', 'val_001_1.png']
    truth, prediction = panels(tmp_path / 'work' / 'pictures' / names[0])
    for panel, labels in ((truth, SEGMENTS), (prediction, 2 - SEGMENTS)):
        for x, y in ((5, 5), (85, 5), (5, 55), (85, 55), (43, 3), (47, 3), (3, 28), (3, 32)):
            color = panel[round(y * SCALE), round(x * SCALE), ::-1].astype(int) - 18
            np.testing.assert_allclose(color, 0.8 * np.array(palette[labels[y, x]]), atol=3)


@pytest.mark.parametrize('with_files', [True, False])
def test_classifications_show_both_labels(monkeypatch, tmp_path, with_files):
    pytest.importorskip('mmpretrain')
    from mmpretrain.visualization import UniversalVisualizer
    for name in ('cat', 'dog'):
        gray_images(tmp_path / 'images' / name, 1)
    keys = ('img_path',) if with_files else ()
    dataset = dict(
        type='CustomDataset', data_prefix=str(tmp_path / 'images'), test_mode=True,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs', meta_keys=keys)])
    shown = []
    draw = UniversalVisualizer.visualize_cls

    def spy(self, image, sample, **kwargs):
        shown.append((image.shape, sample.gt_label.item(), sample.pred_label.item()))
        draw(self, image, sample, **kwargs)

    monkeypatch.setattr(UniversalVisualizer, 'visualize_cls', spy)

    def classify(sample):
        return sample.set_pred_score(torch.tensor([0.1, 0.9])).set_pred_label(1)

    names = validate(tmp_path / 'work', classify, dataset, 'UniversalVisualizer', 'mmpretrain',
                     'default_collate')
    assert names == (['val_000_0.png', 'val_001_0.png'] if with_files
                     else ['val_000_image.png', 'val_001_image.png'])
    assert shown == [((480, 720, 3), 0, 1), ((480, 720, 3), 1, 1)]
    picture = cv2.imread(str(tmp_path / 'work' / 'pictures' / names[0]))
    assert picture.shape == (480, 720, 3)
    assert picture[:200].std() > 5 > picture[400:].std()  # text at the top


def test_a_visualizer_that_cannot_draw_samples_is_named(capfd, tmp_path):
    pytest.importorskip('mmdet')
    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))
    assert not validate(tmp_path / 'work', detect, dataset, 'Visualizer', 'mmdet')
    assert 'PicturesHook draws nothing: Visualizer cannot draw' in capfd.readouterr().out


def test_a_full_disk_does_not_end_the_run(capfd, monkeypatch, tmp_path):
    pytest.importorskip('mmdet')

    def no_space(path, target):
        raise OSError(28, 'No space left on device')

    dataset = detection_set(tmp_path, detection_pipeline('resize load', False))
    monkeypatch.setattr(pictures.os, 'replace', no_space)
    validate(tmp_path / 'work', detect, dataset, 'DetLocalVisualizer', 'mmdet')
    assert 'a picture was not written: [Errno 28]' in capfd.readouterr().out


@pytest.mark.parametrize('name', ['max_images', 'interval', 'short_side'])
def test_pictures_hook_refuses_wrong_arguments(name):
    with pytest.raises(ValueError, match=f'{name} is 0'):
        pictures.PicturesHook(**{name: 0})
