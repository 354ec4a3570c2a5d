"""The picture of losses and metrics of a run."""
import json
import math

import cv2
import pytest
import torch
import torch.nn.functional as F
from toy_runner import mmengine_resumes, toy_runner

from xvit_mm.engine import ClassificationLoss
from xvit_mm.engine.hooks.curves import MAIN_METRICS, draw_curves, main_metrics
from xvit_mm.engine.hooks.run_history import read_history

__all__ = ['mmengine_resumes']  # a fixture


def test_a_resumed_run_shows_one_continuous_curve(tmp_path, mmengine_resumes):
    toy_runner(tmp_path, 'CurvesHook', length=2).train()
    first = (tmp_path / 'curves.png').read_bytes()
    toy_runner(tmp_path, 'CurvesHook', length=4, resume=True).train()
    history = read_history(tmp_path, 5)
    assert list(history.losses['loss']) == list(range(1, 21))
    assert history.metrics == {'toy/bbox_mAP': dict.fromkeys((5, 10, 15, 20), 0.25)}
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None
    assert (tmp_path / 'curves.png').read_bytes() != first
    assert not list(tmp_path.glob('.curves*'))


def test_metrics_of_a_run_by_iteration_stand_at_their_iteration(tmp_path):
    toy_runner(tmp_path, 'CurvesHook', by_epoch=False, length=8).train()
    assert list(read_history(tmp_path, 1).metrics['toy/bbox_mAP']) == [4, 8]
    assert (tmp_path / 'curves.png').is_file()


def test_what_was_logged_right_before_the_resumed_iteration_is_kept(tmp_path, mmengine_resumes):
    settings = dict(by_epoch=False, log_interval=3)
    toy_runner(tmp_path, 'CurvesHook', length=4, **settings).train()
    toy_runner(tmp_path, 'CurvesHook', length=9, resume=True, **settings).train()
    history = read_history(tmp_path, 1)
    assert list(history.losses['loss']) == [3, 6, 9]
    assert list(history.metrics['toy/bbox_mAP']) == [4, 8, 9]


def write_run(work_dir, name, lines):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(lines))


def train_line(step, loss, prefix=''):
    return json.dumps({f'{prefix}loss': loss, 'lr': 0.1, 'time': 1.0, 'iter': step, 'step': step})


def val_line(step, value):
    return json.dumps({'coco/bbox_mAP': value, 'coco/bbox_mAP_s': -1.0, 'time': 1.0, 'step': step})


def test_iterations_that_were_rolled_back_are_forgotten(tmp_path):
    # The first run died at 55 after a checkpoint at 30; the second logs more often.
    write_run(tmp_path, '20250101_000000',
              [train_line(step, 1.0) for step in (10, 20, 30)] + [val_line(1, 0.1)]
              + [train_line(35, 9.0), val_line(2, 0.9), train_line(55, 9.0)])
    write_run(tmp_path, '20250102_000000',
              [train_line(step, 2.0) for step in (34, 38, 42)] + ['{"loss": 3.0, "st'])
    history = read_history(tmp_path, 30)
    assert history.losses['loss'] == {10: 1.0, 20: 1.0, 30: 1.0, 34: 2.0, 38: 2.0, 42: 2.0}
    assert history.metrics == {'coco/bbox_mAP': {30: 0.1}}


def test_a_run_begun_anew_in_the_same_folder_replaces_the_old_one(tmp_path):
    write_run(tmp_path, '20250101_000000', [train_line(step, 1.0) for step in (10, 20, 30)])
    write_run(tmp_path, '20250101_000001', [train_line(10, 2.0)])
    assert read_history(tmp_path).losses == {'loss': {10: 2.0}}


def test_prefixes_infinities_and_standalone_validations_are_dealt_with(tmp_path):
    losses = {10: 1.0, 20: float('nan')}
    lines = [train_line(step, loss, 'train/') for step, loss in losses.items()]
    write_run(tmp_path, '20250101_000000', [val_line(0, 0.7), *lines])
    history = read_history(tmp_path, 1)
    assert history.losses == {'loss': {10: 1.0}} and not history.metrics


def test_validation_loss_and_training_accuracy_stand_beside_their_counterparts(tmp_path):
    lines = []
    for epoch in (1, 2):
        lines.append(json.dumps({'loss': 2.0 / epoch, 'accuracy_top-1': 30.0 * epoch, 'lr': 0.1,
                                 'iter': 10 * epoch, 'step': 10 * epoch}))
        lines.append(json.dumps({'accuracy/top1': 25.0 * epoch, 'val_loss': 2.5 / epoch,
                                 'step': epoch}))
    write_run(tmp_path, '20250101_000000', lines)
    history = read_history(tmp_path, 10)
    assert history.losses == {'loss': {10: 2.0, 20: 1.0}, 'val_loss': {10: 2.5, 20: 1.25}}
    assert history.metrics == {'training accuracy_top-1': {10: 30.0, 20: 60.0},
                               'accuracy/top1': {10: 25.0, 20: 50.0}}
    # What belongs to the training is drawn whatever metrics of the validation are asked for.
    assert set(main_metrics(history.metrics, MAIN_METRICS)) == set(history.metrics)
    assert set(main_metrics({'a': {}, 'b': {}, **history.metrics}, ['a$'])) == {
        'a', 'training accuracy_top-1'}
    draw_curves(history, tmp_path / 'curves.png')
    assert cv2.imread(str(tmp_path / 'curves.png')) is not None


@pytest.mark.parametrize('loss', [None, dict(
    type='mmpretrain.LabelSmoothLoss', label_smooth_val=0.1, mode='original')])
def test_validation_loss_is_that_of_the_logits(loss):
    logits = 3 * torch.randn(5, 4, generator=torch.manual_seed(0))
    logits[0] = torch.tensor([500., 0, 0, 0])  # the other probabilities underflow
    labels = torch.tensor([0, 3, 1, 2, 2])
    metric = ClassificationLoss(loss)
    for part in (slice(0, 2), slice(2, 5)):
        metric.process(None, [dict(pred_score=score, gt_label=label[None]) for score, label in
                              zip(logits[part].softmax(1), labels[part])])
    smoothing = 0.1 if loss else 0.
    expected = F.cross_entropy(logits[1:], labels[1:], label_smoothing=smoothing, reduction='sum')
    # The first: log 1 = 0 for its class, and the smallest normal number for the others.
    expected += smoothing / 4 * 3 * -math.log(torch.finfo(torch.float32).tiny)
    assert metric.evaluate(5) == {'val_loss': pytest.approx(expected.item() / 5, rel=1e-5)}


def test_nothing_to_draw_writes_no_picture(tmp_path):
    draw_curves(read_history(tmp_path), tmp_path / 'curves.png')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name, is_main', [
    ('coco/segm_mAP', True), ('coco/bbox_mAP_50', True), ('mIoU', True), ('aAcc', True),
    ('accuracy/top1', True), ('pascal_voc/mAP', True), ('pascal_voc/AP50', True),
    ('coco/bbox_mAP_s', False), ('coco/bbox_mAP_75', False), ('loss', False),
])
def test_main_metrics_of_each_task_are_drawn(name, is_main):
    import re
    assert any(re.search(pattern, name) for pattern in MAIN_METRICS) == is_main


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    ({'metrics': 'mAP'}, TypeError, "'mAP'"),
    ({'file_name': 'curves.jpg'}, ValueError, 'curves.jpg'),
])
def test_curves_hook_refuses_wrong_arguments(arguments, error, message):
    from xvit_mm.engine.hooks import CurvesHook
    with pytest.raises(error, match=message):
        CurvesHook(**arguments)
