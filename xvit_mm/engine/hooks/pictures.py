"""Predictions beside ground truth as picture files, for detection, segmentation, classification."""
from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from xvit_mm.registry import HOOKS

from xvit_mm.visualization.frame import Color, add_captions, add_legend
from .picture_samples import rescale_sample

_MIN_FONT_SIZE = 9  # points


@HOOKS.register_module()
class PicturesHook(Hook):
    """Writes `work_dir/pictures/{val,test}_*.png`: ground truth on the left, prediction right.

    Samples from all over the validation or test set, which may be sorted by class, are drawn by the
    visualizer of the run (that of mmdet, mmseg or mmpretrain); of several processes, the first
    draws of its share. The pictures of an earlier validation are replaced. mmpretrain's visualizer
    writes both labels on one picture.

    Args:
        max_images: number of samples to draw.
        interval: draw at every so many validations, and at the last one of a run.
        score_thr: detections with a lower score are not drawn.
        short_side: pictures are enlarged or reduced to this, in pixels, so that labels can be read.
        folder: where to write, relative to the work directory. In a folder outside it, or given by
            its absolute path, no other file is removed.
    """

    priority = 'LOW'

    def __init__(
        self,
        max_images: int = 12,
        interval: int = 1,
        score_thr: float = 0.3,
        short_side: int = 480,
        folder: str = 'pictures',
    ) -> None:
        for name, value in (
            ('max_images', max_images),
            ('interval', interval),
            ('short_side', short_side),
        ):
            if value < 1:
                raise ValueError(f'{name} is {value}; it must be at least 1')
        self.max_images = max_images
        self.interval = interval
        self.score_thr = score_thr
        self.short_side = short_side
        self.folder = folder
        self._num_validations = 0
        self._written: set[str] | None = None  # None while nothing is to be drawn
        self._num_seen = 0

    def before_val_epoch(self, runner: Runner) -> None:
        self._num_validations += 1
        is_due = (self._num_validations - 1) % self.interval == 0 or _is_last_validation(runner)
        self._start(runner, is_due)

    def before_test_epoch(self, runner: Runner) -> None:
        self._start(runner, is_due=True)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        self._draw_batch(runner, data_batch, outputs, 'val')

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        self._draw_batch(runner, data_batch, outputs, 'test')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._finish(runner, 'val')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._finish(runner, 'test')

    def _start(self, runner: Runner, is_due: bool) -> None:
        self._written = None
        if not is_due or not is_main_process():
            return
        if _has_datasample_drawing(runner):
            self._written, self._num_seen = set(), 0
            self._folder(runner).mkdir(parents=True, exist_ok=True)
            self._remove(runner, '.partial_*')
        else:
            print_log(
                f'PicturesHook draws nothing: {type(runner.visualizer).__name__} cannot draw data '
                'samples; set visualizer to mmdet.DetLocalVisualizer, mmseg.SegLocalVisualizer or '
                'mmpretrain.UniversalVisualizer', 'current', logging.WARNING)

    def _draw_batch(
        self,
        runner: Runner,
        data_batch: dict | None,
        outputs: Sequence[BaseDataElement] | None,
        mode: str,
    ) -> None:
        if self._written is None:
            return
        num_samples = len(getattr(runner, f'{mode}_dataloader').dataset) // get_world_size()
        distance = max(1, num_samples // self.max_images)
        for index, sample in enumerate(outputs or ()):
            self._num_seen += 1
            if (self._num_seen - 1) % distance or len(self._written) >= self.max_images:
                continue
            try:
                self._draw_sample(runner, data_batch, index, sample, mode)
            except OSError as error:  # a full disk must not end a run
                print_log(f'a picture was not written: {error}', 'current', logging.WARNING)
                self._written = None
                return

    def _draw_sample(
        self,
        runner: Runner,
        data_batch: dict | None,
        index: int,
        sample: BaseDataElement,
        mode: str,
    ) -> None:
        image = _load_image(runner, sample, data_batch, index)
        panel = _resize(image, self.short_side)
        stem = Path(sample.metainfo.get('img_path') or 'image').stem
        name = f'{mode}_{len(self._written):03d}_{stem}.png'
        path = self._folder(runner) / name
        partial = path.with_name(f'.partial_{name}')
        sample = rescale_sample(
            sample, image.shape[:2], panel.shape[:2], _test_transforms(runner, mode))
        self._draw(runner, panel, sample, partial)
        legend = _legend(sample, runner.visualizer.dataset_meta or {})
        _add_frame(partial, panel.shape[1], legend)
        os.replace(partial, path)
        self._written.add(name)

    def _draw(
        self,
        runner: Runner,
        image: np.ndarray,
        sample: BaseDataElement,
        path: Path,
    ) -> None:
        visualizer = runner.visualizer
        # With out_file the picture goes to that file and to no other backend.
        if hasattr(visualizer, 'visualize_cls'):
            visualizer.visualize_cls(image, sample, out_file=str(path))
        elif 'pred_instances' in sample:
            with _readable_labels(visualizer):
                visualizer.add_datasample(
                    path.stem, image, sample, out_file=str(path), pred_score_thr=self.score_thr)
        else:
            # mmseg's own labels take seconds for each picture, and are too small to be read.
            visualizer.add_datasample(
                path.stem, image, sample, out_file=str(path), with_labels=False)

    def _finish(self, runner: Runner, mode: str) -> None:
        """Remove pictures of an earlier validation that were not replaced."""
        if self._written:
            self._remove(runner, f'{mode}_[0-9][0-9][0-9]*_*.png')
        self._written = None

    def _remove(self, runner: Runner, pattern: str) -> None:
        """Remove files that this hook wrote earlier, where no others can be meant."""
        if Path(self.folder).is_absolute() or '..' in Path(self.folder).parts:
            return
        for path in self._folder(runner).glob(pattern):
            if path.name not in self._written:
                path.unlink()

    def _folder(self, runner: Runner) -> Path:
        return Path(runner.work_dir, self.folder)


def _is_last_validation(runner: Runner) -> bool:
    loop = runner._train_loop  # the property would build the loop, with its data set
    if isinstance(loop, dict) or loop is None:
        return True
    if isinstance(loop, EpochBasedTrainLoop):
        return loop.epoch >= loop.max_epochs
    return loop.iter >= loop.max_iters


def _has_datasample_drawing(runner: Runner) -> bool:
    visualizer = runner.visualizer
    draws = type(visualizer).add_datasample is not Visualizer.add_datasample
    return draws or hasattr(visualizer, 'visualize_cls')


def _load_image(
    runner: Runner,
    sample: BaseDataElement,
    data_batch: dict | None,
    index: int,
) -> np.ndarray:
    """`[H, W, 3]` uint8, RGB: the image file or, for a set without files, the model's input."""
    import mmcv
    path = sample.metainfo.get('img_path')
    if path is not None:
        return mmcv.imfrombytes(get(path), channel_order='rgb')
    image = data_batch['inputs'][index].permute(1, 2, 0)
    image = image.clamp(0, 255).to(torch.uint8).cpu().numpy()
    preprocessor = getattr(runner.model, 'module', runner.model).data_preprocessor
    is_bgr = getattr(preprocessor, 'to_rgb', False) or \
        getattr(preprocessor, '_channel_conversion', False)
    return np.ascontiguousarray(image[..., ::-1] if is_bgr else image)


def _resize(image: np.ndarray, short_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    size = round(width * scale), round(height * scale)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=interpolation)


def _test_transforms(runner: Runner, mode: str) -> Sequence[object]:
    """Transforms of the data set in use, or of the first one that it wraps."""
    dataset = getattr(runner, f'{mode}_dataloader').dataset
    while not hasattr(dataset, 'pipeline'):
        wrapped = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
        if wrapped[0] is None:
            return ()
        dataset = wrapped[0]
    return getattr(dataset.pipeline, 'transforms', ())


@contextmanager
def _readable_labels(visualizer: Visualizer) -> Iterator[None]:
    """Keep labels from being too small: mmdet's have 6 points but on large boxes."""
    draw_texts = visualizer.draw_texts

    def draw_larger_texts(*args: object, **kwargs: object) -> object:
        if isinstance(kwargs.get('font_sizes'), int):
            kwargs['font_sizes'] = max(kwargs['font_sizes'], _MIN_FONT_SIZE)
        return draw_texts(*args, **kwargs)

    visualizer.draw_texts = draw_larger_texts
    try:
        yield
    finally:
        del visualizer.draw_texts


def _legend(sample: BaseDataElement, dataset_meta: dict) -> list[tuple[str, Color]]:
    """Name and colour of the classes that a segmentation sample shows."""
    maps = [sample.get(name).data for name in ('gt_sem_seg', 'pred_sem_seg')
            if 'data' in sample.get(name, {})]
    shown = np.unique(np.concatenate([np.unique(labels) for labels in maps])) if maps else ()
    classes, palette = dataset_meta.get('classes') or (), dataset_meta.get('palette') or ()
    # Labels beyond the classes are ignored, 255 above all.
    return [(classes[index], tuple(palette[index])) for index in shown if index < len(classes)]


def _add_frame(path: Path, panel_width: int, legend: Sequence[tuple[str, Color]]) -> None:
    """Write above two panels what they show, and below them what the colours stand for."""
    import mmcv
    picture = cv2.imread(str(path))
    if picture.shape[1] >= 2 * panel_width:
        picture = add_captions(picture, ('ground truth', 'prediction'), panel_width)
    # Unlike cv2.imwrite, it raises an error where it cannot write.
    mmcv.imwrite(add_legend(picture, legend), path)
