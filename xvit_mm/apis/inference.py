"""Predictions for images in memory, with any config that trains here."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from xvit_mm.checkpoints import official_model, read_checkpoint
from xvit_mm.checkpoints.whole_model import load_whole_model
from xvit_mm.datasets.own_data.common import palette
from xvit_mm.engine.allocator import keep_freed_memory
from xvit_mm.engine.hooks import prepare_for_inference
from xvit_mm.utils.config import ConfigError, datasets_in
from xvit_mm.utils.prediction import Prediction

from .build import build_model

MAX_LISTED = 20  # classes in a message
IGNORED = 255  # the label of pixels whose class was not asked for,
IGNORED_16 = 65535  # and where 255 is a class


class Predictor:
    """A model with its weights and the test pipeline of its config.

        predictor = Predictor(load_config('retinanet_crossformer_s_coco'), 'official')
        predictions = predictor([mmcv.imread('image.jpg')])

    Args:
        cfg: a config of mmdet, mmseg or mmpretrain.
        checkpoint: a path, an address, a name such as `official://retinanet_crossformer_s_coco`, or
            `official` for the authors' whole model of this config.
        device: as in torch, default the best one there is.
        classes: keep only these, by name (`goldfish` is enough for ImageNet's `goldfish, Carassius
            auratus`): boxes and scores of others are dropped, pixels of others get the label 255
            (65535 if the model has more than 255 classes).
        score_thr: drop boxes with a lower score.

    Attributes:
        classes: the names of all classes of the model.
        palette: a colour (R, G, B) for each of them.

    Raises:
        ConfigError: the config has no model or test pipeline, or a class or device does not exist.
        CheckpointError: the weights do not fit the whole model.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | Path,
        *,
        device: str | None = None,
        classes: Sequence[str] | None = None,
        score_thr: float = 0.,
    ) -> None:
        self.pipeline = TestPipeline(cfg)
        checked = checked_device(device)
        self.model = build_model(cfg)
        meta = load_weights(self.model, checkpoint, cfg)
        self.classes, self.palette = classes_of(cfg, meta)
        self.kept = None if classes is None else self._labels_of(classes)
        self.score_thr = score_thr
        self.model.to(checked).eval()
        if torch.device(checked).type == 'cpu':
            keep_freed_memory()
            self.model = prepare_for_inference(self.model)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predict for images [H, W, 3] of uint8 in BGR, as `mmcv.imread` gives them.

        Images that have different sizes after the pipeline are computed one after another, so the
        result for an image does not depend on the others.
        """
        return self.predict_prepared([self.pipeline(image) for image in images])

    @torch.no_grad()
    def predict_prepared(self, packed: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Predict for what `pipeline` has made of images, as a call does."""
        by_shape: dict[tuple, list[int]] = {}
        for i, inputs in enumerate(packed):
            by_shape.setdefault(tuple(inputs['inputs'].shape), []).append(i)
        predictions: dict[int, Prediction] = {}
        for indices in by_shape.values():
            samples = self.model.test_step(pseudo_collate([packed[i] for i in indices]))
            for i, sample in zip(indices, samples):
                predictions[i] = self._selected(to_prediction(sample))
        return [predictions[i] for i in range(len(packed))]

    def _labels_of(self, names: Sequence[str]) -> np.ndarray:
        # ImageNet's names have several parts: 'goldfish, Carassius auratus'.
        parts = [{name, *name.split(', ')} for name in self.classes]
        known = list(dict.fromkeys(part for all_parts in parts for part in sorted(all_parts)))
        if unknown := [name for name in names if name not in known]:
            close = [] if len(self.classes) <= MAX_LISTED else list(dict.fromkeys(
                match for name in unknown for match in get_close_matches(name, known)))
            listed = close or self.classes[:MAX_LISTED]
            more = len(self.classes) - len(listed)
            raise ConfigError(
                f'--classes: the model has no class {", ".join(map(repr, unknown))}; '
                f'{"close to it are" if close else "it has"} {", ".join(map(repr, listed))}'
                + f' and {more} more' * (more > 0 and not close))
        return np.array([i for i, names_of in enumerate(parts) if names_of & set(names)])

    def _selected(self, prediction: Prediction) -> Prediction:
        """The prediction without what was not asked for."""
        changes: dict[str, Any] = {}
        if prediction.boxes is not None:
            keep = prediction.scores >= self.score_thr
            if self.kept is not None:
                keep &= np.isin(prediction.labels, self.kept)
            for name in ('boxes', 'labels', 'scores', 'masks'):
                value = getattr(prediction, name)
                changes[name] = None if value is None else value[keep]
        if prediction.label_map is not None and self.kept is not None:
            is_kept = np.isin(prediction.label_map, self.kept)
            ignored = IGNORED if len(self.classes) <= IGNORED else IGNORED_16
            changes['label_map'] = np.where(is_kept, prediction.label_map, ignored)
        if prediction.class_scores is not None and self.kept is not None:
            scores = np.full_like(prediction.class_scores, -np.inf)
            scores[self.kept] = prediction.class_scores[self.kept]
            changes['class_scores'] = scores
        return replace(prediction, **changes)


class TestPipeline:
    """The test pipeline of a config for images in memory.

    Raises:
        ConfigError: the config has none.
    """

    __test__ = False  # no test, for pytest

    def __init__(self, cfg: Config) -> None:
        dataset = next(datasets_in(cfg.get('test_dataloader')), {})
        steps = dataset.get('pipeline') or cfg.get('test_pipeline')
        if not steps:
            raise ConfigError(f'{cfg.filename} has no test_pipeline to prepare images with')
        loading = [step for step in steps if _is_loading(step)]
        # Files are read as BGR; data sets that hold their images in memory give RGB, or say so.
        self.is_rgb = dataset.get('channel_order', 'rgb') == 'rgb' and not any(
            _name(step).endswith('FromFile') for step in loading)
        self.is_grey = any(step.get('color_type') == 'grayscale' for step in loading)
        self.to_float = any(step.get('to_float32') for step in loading)
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            self.transforms = Compose([step for step in steps if not _is_loading(step)])

    def __call__(self, image: np.ndarray) -> dict[str, Any]:
        """What the model's `test_step` takes, for an image [H, W, 3] of uint8 in BGR."""
        if self.is_grey:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        elif self.is_rgb:
            image = np.ascontiguousarray(image[..., ::-1])
        if self.to_float:
            image = image.astype(np.float32)
        return self.transforms(dict(
            img=image, img_path='', img_id=0, img_shape=image.shape[:2],
            ori_shape=image.shape[:2], scale_factor=(1., 1.)))


def load_weights(model: nn.Module, checkpoint: str | Path, cfg: Config) -> Mapping[str, Any]:
    """Load a checkpoint, official or your own, into a whole model.

    Returns:
        what a run records of its data set: `classes` and `palette`; empty for other files.

    Raises:
        CheckpointError: unreadable, or it does not cover the whole model.
    """
    if checkpoint == 'official':
        checkpoint = official_model(cfg)
    contents = read_checkpoint(checkpoint)
    load_whole_model(model, contents, checkpoint)
    meta = contents.get('meta')
    return (meta.get('dataset_meta') or {}) if isinstance(meta, Mapping) else {}


def classes_of(
    cfg: Config, dataset_meta: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[tuple[int, int, int]]]:
    """Names and colours of the classes of a config's model.

    From what its checkpoint notes, else from the config's data set, which need not be there.
    Classes beyond these names are called `class 3` and so on.
    """
    dataset = next(datasets_in(cfg.get('test_dataloader')), {})
    kind = dataset.get('type')
    if isinstance(kind, str):
        scope = cfg.get('default_scope')
        kind = DATASETS.get(kind if '.' in kind or not scope else f'{scope}.{kind}')
    number = _num_classes(cfg.model)
    for meta in (dataset_meta, dataset.get('metainfo'), getattr(kind, 'METAINFO', None)):
        if meta and meta.get('classes'):
            named = tuple(meta['classes'])
            classes = named + tuple(f'class {i}' for i in range(len(named), number))
            colors = meta.get('palette')
            # mmdet has names such as 'random' as well.
            if not isinstance(colors, (list, tuple)) or len(colors) < len(classes):
                colors = palette(len(classes))
            return classes, [tuple(color) for color in colors]
    return tuple(f'class {i}' for i in range(number)), palette(number)


def to_prediction(sample: Any) -> Prediction:
    """The arrays of a data sample of mmdet, mmseg or mmpretrain.

    Raises:
        ConfigError: it has none of the kinds of prediction that `Prediction` holds.
    """
    if 'pred_sem_seg' in sample and 'pred_instances' not in sample:
        return Prediction(label_map=sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int64))
    if 'pred_score' in sample:
        return Prediction(class_scores=sample.pred_score.float().cpu().numpy())
    instances = sample.get('pred_instances')
    if instances is None or 'bboxes' not in instances or instances.bboxes.shape[-1] != 4:
        raise ConfigError(
            'this model predicts neither upright boxes nor classes of pixels or images, but '
            f'{", ".join(key for key in sample.all_keys() if key.startswith("pred"))}')
    order = instances.scores.sort(descending=True, stable=True).indices
    instances = instances[order]
    masks = instances.masks.cpu().numpy().astype(bool) if 'masks' in instances else None
    return Prediction(
        boxes=instances.bboxes.cpu().numpy(), labels=instances.labels.cpu().numpy(),
        scores=instances.scores.cpu().numpy(), masks=masks)


def checked_device(name: str | None) -> torch.device:
    """A device by its name, default the best one there is.

    Raises:
        ConfigError: torch does not know or have it.
    """
    try:
        device = torch.device(name or get_device())
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'--device {name}: {str(error).splitlines()[0]}') from None
    return device


def _num_classes(node: Any) -> int:
    """The largest `num_classes` in a config's model."""
    if isinstance(node, Mapping):
        inner = [_num_classes(value) for value in node.values()]
        return max([int(node.get('num_classes') or 0), *inner])
    if isinstance(node, (list, tuple)):
        return max(map(_num_classes, node), default=0)
    return 0


def _name(step: Mapping[str, Any]) -> str:
    kind = step['type']
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _is_loading(step: Mapping[str, Any]) -> bool:
    return _name(step).startswith(('LoadImage', 'LoadAnnotations', 'LoadPanopticAnnotations'))
