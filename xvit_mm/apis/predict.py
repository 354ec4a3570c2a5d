"""Predictions for files, written as annotated pictures and as data."""
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.files import check_writable
from xvit_mm.visualization.predictions import draw_prediction

from .inference import Prediction, Predictor, checked_device
from .media import BrokenFile, Source, find_sources, frame_rate, num_frames, read_frames
from .prediction_files import LABELS, PredictionFiles, write_picture


@dataclass
class Predicted:
    """What a run has done.

    num_images: how many images and frames were predicted. written: the files and folders.
    broken: a line for each file that could not be read, or only in part.
    """

    num_images: int = 0
    written: list[Path] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def predict_files(
    cfg: Config,
    checkpoint: str | Path,
    inputs: Sequence[str],
    folder: str | Path,
    *,
    device: str | None = None,
    batch_size: int = 1,
    score_thr: float = 0.3,
    classes: Sequence[str] | None = None,
) -> Predicted:
    """Predict for files; write annotated pictures and videos, and the predictions as data.

    A picture is `FOLDER/NAME.jpg` and a video `FOLDER/NAME.mp4`, after the name of the input;
    `PredictionFiles` describes the data. A webcam runs until it is interrupted.

    Args:
        cfg: a config of mmdet, mmseg or mmpretrain.
        checkpoint: as `Predictor` takes it.
        inputs: as `find_sources` takes them.
        folder: where to write; made if need be.
        device: as in torch, default the best one there is.
        batch_size: how many images to compute at once.
        score_thr: boxes with a lower score are neither drawn nor written.
        classes: keep only these, by name.

    Raises:
        ConfigError: an input, class, device or number that does not exist or make sense, or a
            result would overwrite an input.
        CheckpointError: the weights do not fit the whole model.
        FolderError: the folder cannot be written.
    """
    if batch_size < 1:
        raise ConfigError(f'--batch-size {batch_size}: give at least 1')
    if not 0 <= score_thr <= 1:
        raise ConfigError(f'--score-thr {score_thr}: give a number from 0 to 1')
    checked_device(device)
    folder = Path(folder)
    sources = find_sources(inputs, out=folder)
    _check_keeps_inputs(sources, folder)
    check_writable(folder, '--out')
    predictor = Predictor(
        cfg, checkpoint, device=device, classes=classes, score_thr=score_thr)
    result = Predicted()
    files = PredictionFiles(folder, predictor.classes)
    is_endless = any(source.kind == 'webcam' for source in sources)
    pictures = _Pictures(folder, predictor, result, is_endless=is_endless)
    with _progress(sources) as progress, pictures:
        for batch in _batches(_frames(sources, predictor, result), batch_size):
            predictions = predictor.predict_prepared([prepared for *_, prepared in batch])
            for (source, index, frame, _), prediction in zip(batch, predictions):
                pictures.add(source, frame, prediction)
                name, path = _names(source, index)
                files.add(name, path, frame.shape[:2], prediction)
            result.num_images += len(batch)
            progress.update(progress.task_ids[0], advance=len(batch))
    result.written += files.close()
    return result


def _check_keeps_inputs(sources: Sequence[Source], folder: Path) -> None:
    """Refuse to write a result over one of the inputs.

    Raises:
        ConfigError: one would be.
    """
    inputs = {Path(source.path).resolve() for source in sources}
    for source in sources:
        for name in (_picture_name(source), f'{LABELS}/{source.name}.png'):
            if (folder / name).resolve() in inputs:
                raise ConfigError(f'--out {str(folder)!r}: the result would overwrite the input '
                                  f'{folder / name}; choose another folder')


def _picture_name(source: Source) -> str:
    return f'{source.name}.jpg' if source.kind == 'image' else f'{source.name}.mp4'


Frame = tuple[Source, int, np.ndarray, Mapping[str, Any]]  # the last: for the model


def _frames(
    sources: Sequence[Source], predictor: Predictor, result: Predicted
) -> Iterator[Frame]:
    for source in sources:
        try:
            for index, frame in enumerate(read_frames(source)):
                yield source, index, frame, _prepared(source, frame, predictor)
        except BrokenFile as error:
            result.broken.append(str(error))


def _prepared(source: Source, frame: np.ndarray, predictor: Predictor) -> Mapping[str, Any]:
    try:
        return predictor.pipeline(frame)
    except (cv2.error, ValueError) as error:
        # Such as a side of 3 pixels that becomes 0 where the longer one is reduced.
        height, width = frame.shape[:2]
        raise BrokenFile(
            f"{source.path}: the config's test pipeline does not take {width} x {height} pixels: "
            f'{" ".join(str(error).split())}') from error


def _batches(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _names(source: Source, index: int) -> tuple[str, str]:
    """Of the files for a frame, and how data refer to it."""
    if source.kind == 'image':
        return source.name, source.path
    return f'{source.name}/{index:06d}', f'{source.path}#{index}'


class _Pictures:
    """Annotated pictures, and one video at a time, which an error leaves no part of.

    An endless source ends with an interruption.
    """

    def __init__(
        self, folder: Path, predictor: Predictor, result: Predicted, *, is_endless: bool
    ) -> None:
        self.folder, self.predictor, self.result = folder, predictor, result
        self.is_endless = is_endless
        self.source: Source | None = None
        self.writer: cv2.VideoWriter | None = None

    def __enter__(self) -> '_Pictures':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        is_end = kind is None or self.is_endless and issubclass(kind, KeyboardInterrupt)
        if is_end:
            self.close()
        else:
            self.discard()
        return is_end

    def add(self, source: Source, frame: np.ndarray, prediction: Prediction) -> None:
        picture = draw_prediction(
            frame, prediction, self.predictor.classes, self.predictor.palette,
            legend=source.kind == 'image')
        if source.kind == 'image':
            path = self.folder / _picture_name(source)
            write_picture(path, picture)
            self.result.written.append(path)
            return
        if source != self.source:
            self.close()
            self.source, self.writer = source, self._open(source, picture)
        self.writer.write(picture)

    def close(self) -> None:
        """Finish the video, if there is one."""
        if self.writer is None:
            return
        self.writer.release()
        path = self.folder / _picture_name(self.source)
        os.replace(self._partial(self.source), path)
        self.result.written.append(path)
        self.source = self.writer = None

    def discard(self) -> None:
        """Remove the video that is not finished."""
        if self.writer is not None:
            self.writer.release()
            self._partial(self.source).unlink(missing_ok=True)

    def _open(self, source: Source, picture: np.ndarray) -> cv2.VideoWriter:
        size = picture.shape[1], picture.shape[0]
        writer = cv2.VideoWriter(
            str(self._partial(source)), cv2.VideoWriter_fourcc(*'mp4v'), frame_rate(source), size)
        if not writer.isOpened():
            raise OSError(f'{self.folder / _picture_name(source)} cannot be written by OpenCV')
        return writer

    def _partial(self, source: Source) -> Path:
        return self.folder / f'.partial_{source.name}.mp4'


def _progress(sources: Sequence[Source]) -> Progress:
    numbers = [num_frames(source) for source in sources]
    progress = Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        disable=not sys.stderr.isatty())
    progress.add_task('predicting', total=None if None in numbers else sum(numbers))
    return progress
