"""Predictions for files: what is predicted, what is written, what is skipped or refused."""
import csv
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_predictors import CLASSES, config, images, weights
from tool_runs import run_tool

from xvit_mm.apis import build_model
from xvit_mm.apis.inference import IGNORED, Prediction, Predictor
from xvit_mm.apis.predict import predict_files
from xvit_mm.apis.prediction_files import PredictionFiles
from xvit_mm.checkpoints import CheckpointError
from xvit_mm.utils.config import ConfigError
from xvit_mm.visualization.predictions import draw_prediction

__all__ = ['images', 'weights']  # fixtures


def expected_sample(cfg: Config, checkpoint: Path, path: Path):
    """What the model says of a file by the config's own test pipeline, alone in its batch."""
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    steps = [s for s in cfg.test_dataloader.dataset.pipeline if s['type'] != 'LoadAnnotations']
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        packed = Compose(steps)(dict(img_path=str(path), img_id=0))
    with torch.no_grad():
        return model.test_step(pseudo_collate([packed]))[0]


def assert_as_sample(prediction: Prediction, sample) -> None:
    """A prediction holds the arrays of a data sample of the packages."""
    if 'pred_score' in sample:
        np.testing.assert_allclose(prediction.class_scores, sample.pred_score, rtol=1e-4)
    elif 'pred_sem_seg' in sample:
        np.testing.assert_array_equal(prediction.label_map, sample.pred_sem_seg.data[0])
    else:
        instances = sample.pred_instances
        assert len(prediction.boxes) == len(instances) > 0
        instances = instances[instances.scores.sort(descending=True, stable=True).indices]
        np.testing.assert_allclose(prediction.boxes, instances.bboxes, atol=1e-3)
        np.testing.assert_allclose(prediction.scores, instances.scores, rtol=1e-4)
        np.testing.assert_array_equal(prediction.labels, instances.labels)
        if 'masks' in instances:
            np.testing.assert_array_equal(prediction.masks, instances.masks)


@pytest.mark.parametrize('task', ['detection', 'instances', 'segmentation', 'classification'])
def test_a_batch_of_several_sizes_gives_what_each_image_gives_alone(task, images, weights):
    cfg = config(task)
    checkpoint = weights(cfg)
    files = sorted(path for path in images.rglob('*.*'))
    predictor = Predictor(config(task), checkpoint, device='cpu')
    predictions = predictor([cv2.imread(str(path)) for path in files])
    for path, prediction in zip(files, predictions):
        assert_as_sample(prediction, expected_sample(cfg, checkpoint, path))


def test_boxes_are_written_in_the_format_of_coco(images, weights, tmp_path):
    cfg, out = config('instances'), tmp_path / 'out'
    result = predict_files(cfg, weights(cfg), [str(images)], out, batch_size=2, score_thr=0.)
    assert (result.num_images, result.broken) == (3, [])
    assert sorted(path.name for path in out.iterdir()) == [
        'a.jpg', 'b.jpg', 'c.jpg', 'predictions.json']
    coco = COCO(str(out / 'predictions.json'))
    assert [category['name'] for category in coco.cats.values()][:2] == ['person', 'bicycle']
    assert [Path(image['file_name']).name for image in coco.imgs.values()] == [
        'a.png', 'b.jpg', 'c.png']
    sample = expected_sample(config('instances'), weights(cfg), images / 'sub' / 'c.png')
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    order = sample.pred_instances.scores.sort(descending=True, stable=True).indices
    for annotation, i in zip(annotations, order):
        x1, y1, x2, y2 = sample.pred_instances.bboxes[i].tolist()
        assert annotation['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
        assert annotation['category_id'] == sample.pred_instances.labels[i] + 1
        mask = sample.pred_instances.masks[i].numpy()
        assert annotation['area'] == mask.sum()
        np.testing.assert_array_equal(coco_mask.decode(annotation['segmentation']), mask)
    assert len(annotations) == len(order)


def test_boxes_below_the_threshold_and_of_other_classes_are_left_out(images, weights, tmp_path):
    cfg = config('detection')
    picture = [cv2.imread(str(images / 'a.png'))]
    everything = Predictor(cfg, weights(cfg))(picture)[0]
    threshold = float(np.median(everything.scores))
    some = Predictor(config('detection'), weights(cfg), score_thr=threshold,
                     classes=['star', 'ellipse'])(picture)[0]
    kept = (everything.scores >= threshold) & np.isin(everything.labels, [3, 0])
    assert 0 < kept.sum() < len(everything.scores)
    np.testing.assert_array_equal(some.boxes, everything.boxes[kept])
    with pytest.raises(ConfigError, match="no class 'moon'; it has 'ellipse', 'rectangle'"):
        Predictor(config('detection'), weights(cfg), classes=['star', 'moon'])


def test_classes_of_pixels_are_written_as_label_images(images, weights, tmp_path):
    cfg = config('segmentation')
    for folder, classes in (('all', None), ('some', ['star', 'ring'])):
        predict_files(config('segmentation'), weights(cfg), [str(images)], tmp_path / folder,
                      classes=classes)
    for path in images.rglob('*.*'):
        labels = cv2.imread(str(tmp_path / 'all/labels' / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)
        expected = expected_sample(cfg, weights(cfg), path).pred_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(labels, expected)
        some = cv2.imread(str(tmp_path / 'some/labels' / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(some, np.where(expected >= 3, expected, IGNORED))
    assert (tmp_path / 'all/labels/classes.txt').read_text().split() == list(CLASSES)


def test_classes_of_images_are_written_as_csv(images, weights, tmp_path):
    cfg = config('classification')
    predict_files(cfg, weights(cfg), [str(images / 'a.png')], tmp_path / 'out')
    with (tmp_path / 'out' / 'predictions.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    scores = expected_sample(config('classification'), weights(cfg), images / 'a.png').pred_score
    best = scores.argsort(descending=True).tolist()
    assert [(int(row['rank']), int(row['label']), row['class']) for row in rows] == [
        (rank, label, CLASSES[label]) for rank, label in enumerate(best, start=1)]
    assert [float(row['score']) for row in rows] == pytest.approx(
        scores[best].tolist(), abs=1e-6)


@pytest.mark.parametrize('loading, order, seen', [
    ([dict(type='LoadImageFromFile')], None, 'rgb'), ([], None, 'bgr'), ([], 'bgr', 'rgb')])
def test_images_reach_the_model_as_in_training(loading, order, seen, weights):
    """Files are read as BGR, and sets in memory give RGB; `to_rgb` converts either way."""
    cfg = config('classification')
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = [*loading, *dataset.pipeline[1:]]
    if order:
        dataset.channel_order = order
    predictor, inputs = Predictor(cfg, weights(cfg)), []
    predictor.model.backbone.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 0] = 255
    predictor([blue])
    assert inputs[0][0].mean((1, 2)).argmax() == 'bgr'.index('b') + 2 * (seen == 'rgb')


def test_a_model_of_grey_images_sees_the_luminance(weights, images):
    cfg = config('classification')
    cfg.model.backbone.in_channels = 1
    cfg.data_preprocessor = dict(mean=[120.], std=[60.])
    cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    prediction, = Predictor(cfg, weights(cfg))([cv2.imread(str(images / 'a.png'))])
    expected = expected_sample(cfg, weights(cfg), images / 'a.png').pred_score
    # The decoder rounds some pixels the other way.
    np.testing.assert_allclose(prediction.class_scores, expected, atol=2e-4)


def test_names_of_classes_come_from_the_training_then_from_the_data_set(weights, tmp_path):
    cfg = config('detection')
    contents = torch.load(weights(cfg))
    torch.save(dict(contents, meta=dict(dataset_meta=dict(classes=tuple('abcde')))),
               tmp_path / 'trained.pth')
    assert Predictor(cfg, tmp_path / 'trained.pth').classes == tuple('abcde')
    assert Predictor(config('detection'), weights(cfg)).classes == CLASSES
    instances = config('instances')
    assert Predictor(instances, weights(instances)).classes[:2] == ('person', 'bicycle')


def test_classes_beyond_the_names_are_numbered(weights, tmp_path):
    cfg = config('detection')
    torch.save(dict(torch.load(weights(cfg)), meta=dict(dataset_meta=dict(classes=('a', 'b')))),
               tmp_path / 'trained.pth')
    predictor = Predictor(cfg, tmp_path / 'trained.pth')
    assert predictor.classes == ('a', 'b', 'class 2', 'class 3', 'class 4')
    assert len(predictor.palette) == 5


def test_a_pixel_that_is_left_out_has_no_label_of_a_class(weights, images):
    cfg = config('segmentation')
    cfg.model.decode_head.num_classes = 300
    cfg.test_dataloader.dataset.metainfo = dict(classes=[f'c{i}' for i in range(300)])
    labels = Predictor(cfg, weights(cfg), classes=['c255'])([cv2.imread(str(images / 'b.jpg'))])[0]
    assert set(np.unique(labels.label_map)) <= {255, 65535}


# The tool.


def test_the_tool_skips_broken_images_and_says_so_at_the_end(images, weights, tmp_path):
    cfg = config('detection')
    cfg.dump(tmp_path / 'cfg.py')
    (images / 'broken.jpg').write_bytes((images / 'b.jpg').read_bytes()[:50])

    done = run_tool('predict', tmp_path / 'cfg.py', weights(cfg), images, '--out', tmp_path / 'out')
    assert done.returncode == 1
    assert '3 images predicted' in done.stdout
    assert done.stderr.splitlines()[-1] == f'skipped: {images}/broken.jpg is damaged, or not an image'
    assert (tmp_path / 'out' / 'predictions.json').is_file()


def test_a_thin_image_that_the_pipeline_cannot_resize_is_skipped(images, weights, tmp_path):
    cfg = config('detection')
    cv2.imwrite(str(images / 'b_thin.png'), np.zeros((2500, 3, 3), np.uint8))
    result = predict_files(
        cfg, weights(cfg), [str(images)], tmp_path / 'out', batch_size=2, score_thr=0.)
    assert result.num_images == 3 and (tmp_path / 'out' / 'predictions.json').is_file()
    assert len(result.broken) == 1 and result.broken[0].startswith(
        f"{images}/b_thin.png: the config's test pipeline does not take 3 x 2500 pixels: ")


def test_a_name_that_is_no_text_is_written_as_it_is(images, weights, tmp_path):
    cfg = config('classification')
    name = os.fsencode(images) + b'/caf\xe9.jpg'  # Latin-1
    os.rename(images / 'b.jpg', name)
    predict_files(cfg, weights(cfg), [str(images)], tmp_path / 'out')
    assert name + b',1,' in (tmp_path / 'out' / 'predictions.csv').read_bytes()


# Weights.


def test_weights_of_a_backbone_alone_are_refused(weights, tmp_path):
    cfg = config('detection')
    contents = torch.load(weights(cfg))['state_dict']
    torch.save({n: t for n, t in contents.items() if n.startswith('backbone')},
               tmp_path / 'backbone.pth')
    with pytest.raises(CheckpointError, match='does not cover the whole RetinaNet.*bbox_head'):
        Predictor(cfg, tmp_path / 'backbone.pth')


def test_a_config_without_our_backbone_is_loaded_by_name(images, weights, tmp_path):
    cfg = config('detection')
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18, base_channels=8)
    cfg.model.neck.in_channels = [8, 16, 32, 64]
    assert len(Predictor(cfg, weights(cfg))([cv2.imread(str(images / 'a.png'))])) == 1
    torch.save(dict(other=torch.ones(1)), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='other.pth does not fit this model'):
        Predictor(cfg, tmp_path / 'other.pth')
    contents = torch.load(weights(cfg))
    contents['state_dict']['bbox_head.retina_cls.bias'].fill_(torch.nan)
    torch.save(contents, tmp_path / 'diverged.pth')
    with pytest.raises(CheckpointError, match='diverged.pth: bbox_head.retina_cls.bias has values'):
        Predictor(cfg, tmp_path / 'diverged.pth')


@pytest.mark.parametrize('options, message', [
    (dict(device='cuda:99'), '--device cuda:99'), (dict(device='gpu'), '--device gpu'),
    (dict(batch_size=0), '--batch-size 0'), (dict(score_thr=2.), '--score-thr 2'),
])
def test_options_that_cannot_work_are_refused(options, message, images, weights, tmp_path):
    cfg = config('detection')
    with pytest.raises(ConfigError, match=message):
        predict_files(cfg, weights(cfg), [str(images)], tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_classes_are_kept_by_any_of_their_names(weights):
    cfg = config('classification')
    names = ('tench, Tinca tinca', 'goldfish, Carassius auratus', 'tench', 'ring', 'star',
             *(f'class {i}' for i in range(20)))
    cfg.test_dataloader.dataset.metainfo = dict(classes=names)
    for given, kept in (['tench'], [0, 2]), ([names[1], 'star'], [1, 4]):
        assert Predictor(cfg, weights(cfg), classes=given).kept.tolist() == kept
    with pytest.raises(ConfigError, match="no class 'stars'; close to it are 'star'"):
        Predictor(cfg, weights(cfg), classes=['ring', 'stars'])
    with pytest.raises(ConfigError, match="no class '###'; it has 'tench, Tinca tinca', "):
        Predictor(cfg, weights(cfg), classes=['###'])


# Pictures and files.


def test_a_box_a_mask_and_a_class_are_drawn_where_they_are():
    image = np.zeros((400, 400, 3), np.uint8)
    mask = np.zeros((1, 400, 400), bool)
    mask[0, 150:250, 120:180] = True
    drawn = draw_prediction(image, Prediction(
        boxes=np.array([[100., 100., 200., 300.]]), labels=np.array([1]), scores=np.array([.9]),
        masks=mask), CLASSES, [(255, 0, 0), (0, 0, 200)] * 3)
    assert drawn.shape == image.shape
    assert drawn[300, 150].tolist() == [200, 0, 0]  # the frame, in BGR
    assert drawn[200, 150].tolist() == [100, 0, 0]  # the mask, half of its colour
    assert drawn[120, 150].tolist() == [0, 0, 0] and drawn[200, 300].tolist() == [0, 0, 0]
    labels = np.zeros((400, 400), int)
    labels[:, 200:] = IGNORED
    drawn = draw_prediction(image + 100, Prediction(label_map=labels), CLASSES, [(50, 0, 0)] * 5)
    assert drawn[10, 10].tolist() == [50, 50, 75] and drawn[10, 300].tolist() == [100] * 3


def test_thin_images_are_not_enlarged_beyond_what_a_file_holds(tmp_path):
    nothing = Prediction(boxes=np.zeros((0, 4)), labels=np.zeros(0, int), scores=np.zeros(0))
    drawn = draw_prediction(np.zeros((2, 5000, 3), np.uint8), nothing, CLASSES, [(0, 0, 0)] * 5)
    assert drawn.shape == (2, 5000, 3)
    drawn = draw_prediction(np.zeros((20, 1000, 3), np.uint8), nothing, CLASSES, [(0, 0, 0)] * 5)
    assert drawn.shape == (160, 8000, 3)


def test_names_of_boxes_do_not_overlap_and_stay_in_the_picture():
    image = np.full((400, 400, 3), 7, np.uint8)
    boxes = np.array([[100., -5., 300., 200.]] * 3 + [[390., 395., 410., 420.]])
    prediction = Prediction(boxes=boxes, labels=np.array([0, 1, 2, 0]), scores=np.full(4, .9))
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    drawn = draw_prediction(image, prediction, CLASSES, colors)
    alone = draw_prediction(image, replace(
        prediction, boxes=boxes[:1], labels=np.array([0]), scores=np.full(1, .9)), CLASSES, colors)
    for color, number in zip(colors, (2, 1, 1)):
        # The patch of a name is the only large area of its colour.
        patches = cv2.erode((drawn == color[::-1]).all(2).astype(np.uint8), np.ones((2, 4)))
        assert cv2.connectedComponents(patches)[0] >= 1 + number
    assert (alone[2:12, 104:150] == (0, 0, 255)).all(2).mean() > 0.3  # inside, at the top


def test_more_classes_than_a_byte_holds_are_written(tmp_path):
    files = PredictionFiles(tmp_path, [f'class {i}' for i in range(300)])
    files.add('x', 'x.png', (2, 2), Prediction(label_map=np.array([[299, 0], [1, 256]])))
    written = cv2.imread(str(tmp_path / 'labels/x.png'), cv2.IMREAD_UNCHANGED)
    assert written.tolist() == [[299, 0], [1, 256]]
