"""Predictions: which inputs are found, and videos."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_predictors import config, images, weights

from xvit_mm.apis import predict
from xvit_mm.apis.media import BrokenFile, find_sources, read_frames
from xvit_mm.apis.predict import predict_files
from xvit_mm.utils.config import ConfigError

__all__ = ['images', 'weights']  # fixtures


def test_inputs_are_found_once_in_order_and_named_differently(images, monkeypatch):
    (images / 'a.jpg').write_bytes((images / 'b.jpg').read_bytes())
    (images / 'clip.mp4').touch()
    (images / 'notes.txt').touch()
    sources = find_sources([str(images), str(images / '*.png'), '0'])
    assert [(Path(s.path).name, s.name, s.kind) for s in sources] == [
        ('a.jpg', 'a', 'image'), ('a.png', 'a_2', 'image'), ('b.jpg', 'b', 'image'),
        ('clip.mp4', 'clip', 'video'), ('c.png', 'c', 'image'), ('0', 'webcam0', 'webcam')]


@pytest.mark.parametrize('entry, message', [
    ('gone.jpg', "'gone.jpg' does not exist; give image or video files"),
    ('images/*.tif', "'images/.*.tif' has no images or videos"), ('empty', "'empty' has no images"),
])
def test_inputs_that_are_not_there_are_refused(entry, message, images, monkeypatch):
    monkeypatch.chdir(images.parent)
    Path('empty').mkdir()
    with pytest.raises(ConfigError, match=message):
        find_sources([entry])


def test_results_within_an_input_folder_are_not_inputs(images):
    (images / 'out').mkdir()
    (images / 'out/a.jpg').write_bytes((images / 'b.jpg').read_bytes())
    found = find_sources([str(images)], out=images / 'out')
    assert [Path(source.path).name for source in found] == ['a.png', 'b.jpg', 'c.png']
    assert len(find_sources([str(images)], out=images)) == 4
    assert len(find_sources([str(images / 'out')], out=images.parent)) == 1


@pytest.mark.parametrize('inputs, out, overwritten', [
    (['b.jpg'], '.', 'b.jpg'), (['.'], '.', 'b.jpg'), (['sub/../b.jpg'], 'sub/..', 'b.jpg'),
    (['labels/d.png'], '.', 'labels/d.png')])
def test_an_input_is_never_overwritten(inputs, out, overwritten, images):
    (images / 'labels').mkdir()
    (images / 'labels/d.png').write_bytes((images / 'a.png').read_bytes())
    before = {path: path.read_bytes() for path in images.rglob('*.*')}
    with pytest.raises(ConfigError, match=f'would overwrite the input .*{overwritten}; choose'):
        predict_files(config('detection'), 'not read', [str(images / i) for i in inputs],
                      images / out)
    assert {path: path.read_bytes() for path in images.rglob('*.*')} == before


@pytest.fixture
def video(tmp_path) -> Path:
    """Ten frames of 96 x 64 pixels, brighter and brighter, 10 a second."""
    path = tmp_path / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (96, 64))
    for i in range(10):
        writer.write(np.full((64, 96, 3), 20 * i, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize('task', ['detection', 'segmentation', 'classification'])
def test_a_video_becomes_a_video_and_data_for_each_frame(task, video, weights, tmp_path):
    cfg, out = config(task), tmp_path / 'out'
    result = predict_files(cfg, weights(cfg), [str(video)], out, batch_size=4)
    assert result.num_images == 10 and not result.broken
    capture = cv2.VideoCapture(str(out / 'clip.mp4'))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (10, 10)
    if task == 'detection':
        names = [image['file_name'] for image in
                 json.loads((out / 'predictions.json').read_text())['images']]
        assert names == [f'{video}#{i}' for i in range(10)]
    elif task == 'segmentation':
        assert len(list((out / 'labels/clip').glob('*.png'))) == 10
    assert not list(out.rglob('.*partial*'))


def test_a_webcam_runs_until_it_is_interrupted(weights, tmp_path, monkeypatch):
    class Webcam:
        frames = 0

        def __init__(self, number):
            assert number == 3

        def isOpened(self):
            return True

        def get(self, what):
            return 0.

        def read(self):
            Webcam.frames += 1
            if Webcam.frames > 3:
                raise KeyboardInterrupt
            return True, np.zeros((64, 96, 3), np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, 'VideoCapture', Webcam)
    cfg = config('detection')
    result = predict_files(cfg, weights(cfg), ['3'], tmp_path / 'out')
    assert result.num_images == 3
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'webcam3.mp4', 'predictions.json'}


def test_an_interruption_leaves_nothing_half_done(video, weights, tmp_path, monkeypatch):
    def interrupted(source):
        yield np.zeros((64, 96, 3), np.uint8)
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, 'read_frames', interrupted)
    cfg = config('detection')
    with pytest.raises(KeyboardInterrupt):
        predict_files(cfg, weights(cfg), [str(video)], tmp_path / 'out')
    assert not list((tmp_path / 'out').iterdir())


def test_videos_that_are_broken_are_named(video, tmp_path):
    path = tmp_path / 'text.mp4'
    path.write_text('no video')
    with pytest.raises(BrokenFile, match='text.mp4 cannot be opened: damaged, or not a video'):
        list(read_frames(find_sources([str(path)])[0]))
