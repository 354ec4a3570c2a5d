"""One training step and one prediction of a config's model, on random images."""
import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from torch import nn

from xvit_mm.utils.config import ConfigError, dicts_in
from xvit_mm.utils.config_options import revert_sync_bn

from .maps import build

BATCH = 2
SIDES = {'mmdet': 128, 'mmrotate': 128, 'mmseg': 128, 'mmpretrain': 64}
_IGNORED = 255
# Left, top, right and bottom of two objects, as parts of a side.
_BOXES = ((0.1, 0.1, 0.5, 0.6), (0.3, 0.2, 0.9, 0.9))
# As many places as four maps of an image of 128 x 128 have.
_FEW_QUERIES = 16**2 + 8**2 + 4**2 + 2**2


@dataclass(frozen=True)
class Trial:
    """The loss, the predictions, and the backbone parameters without a gradient."""

    loss: float
    predictions: list[Any]
    without_gradient: list[str]


def model_config(cfg: Config) -> dict[str, Any]:
    """Return the model of a config, ready to be built on a CPU."""
    cfg = copy.deepcopy(cfg)
    revert_sync_bn(cfg)
    model = cfg.model.to_dict()
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor.to_dict())
    return model


def try_model(cfg: Config, scope: str) -> Trial:
    """Build the model of a config, train it for a step and let it predict.

    Images are small and batches not augmented; of pretrained weights, only those of the backbone
    are loaded.

    Raises:
        ConfigError: anything fails, or the loss or a gradient is not finite.
        RuntimeError: the weights do not fit the backbone.
    """
    side = _side(cfg, scope)
    try:
        return _try_at(cfg, scope, side)
    except ConfigError as error:
        # What mmcv's deformable convolution says of maps of one or two cells.
        if 'smaller than kernel' not in str(error):
            raise
        return _try_at(cfg, scope, 3 * side)


def _try_at(cfg: Config, scope: str, side: int) -> Trial:
    model = build(_small_images(model_config(cfg), scope, side), scope)
    with _quiet():
        _initialise(model)
    with DefaultScope.overwrite_default_scope(scope):
        batch = _batch(cfg, scope, side)
        loss = _run(_training_step, model, copy.deepcopy(batch))
        _check_finite(model, loss)
        without = [name for name, p in model.backbone.named_parameters()
                   if p.requires_grad and p.grad is None]
        return Trial(loss, _run(_predict, model, batch), without)


def _run(step: Callable[[nn.Module, dict], Any], model: nn.Module, batch: dict) -> Any:
    try:
        return step(model, batch)
    except Exception as error:
        # Whatever a framework raises where parts of a model do not fit together.
        raise ConfigError(
            f'{_reason(step, model, error)}. --no-trial writes the config all the same') from error


def _reason(step: Callable, model: nn.Module, error: Exception) -> str:
    name, text = type(model).__name__, str(error).strip().rstrip('.')
    if isinstance(error, ImportError):
        # mmdet names a package of PyPI that is empty.
        text = text.replace('pip install sklearn', 'pip install scikit-learn')
        return f'{name} needs a package that is not installed here: {text}'
    if missing := re.match(r'(\w+): implementation for device (\w+) not found', text):
        return (f'{name} needs an operator of mmcv that does not exist for device '
                f'{missing[2]!r}, on which the trial runs: {missing[1]}')
    what = 'prediction' if step is _predict else 'training step'
    return (f'with the new backbone, a {what} of {name} fails: '
            f'{type(error).__name__}: {text}')


def _training_step(model: nn.Module, batch: dict[str, list]) -> float:
    model.train()
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    return float(loss.detach())


def _predict(model: nn.Module, batch: dict[str, list]) -> list[Any]:
    model.eval()
    for name, parameter in model.named_parameters():
        # Untrained stages move boxes out of the image one after the other, and mmdet cannot paste
        # the mask of such a box on a CPU. Boxes that stay where they are keep the same shapes.
        if '.fc_reg.' in name:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        return model(**model.data_preprocessor(batch, False), mode='predict')


def _check_finite(model: nn.Module, loss: float) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not math.isfinite(loss) or not all(torch.isfinite(grad).all() for grad in gradients):
        raise ConfigError(
            f'with the new backbone, the first loss is {loss}, or a gradient of it is not finite. '
            '--no-trial writes the config all the same')


def _initialise(model: nn.Module) -> None:
    """Initialise the model as for training, without downloads."""
    for module in model.modules():
        start = getattr(module, 'init_cfg', None)
        if isinstance(start, dict) and start.get('type') == 'Pretrained':
            module.init_cfg = start if module is model.backbone else None
    model.init_weights()
    # Some heads ask the runner's message hub how far the run is.
    hub = MessageHub.get_current_instance()
    hub.update_info('epoch', 0)
    hub.update_info('iter', 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep mmengine from reporting how every single parameter was initialised."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def _side(cfg: Config, scope: str) -> int:
    """Return the side of the images in pixels: small, unless the method needs more."""
    anchors = cfg.model.get('bbox_head', {}).get('anchor_generator', {})
    if anchors.get('input_size'):
        return anchors.input_size
    # The first stage of two-stage DETRs chooses several hundred places of the maps.
    many = cfg.model.get('as_two_stage') and cfg.model.get('num_queries', 0) > _FEW_QUERIES
    return 2 * SIDES[scope] if many else SIDES[scope]


def _small_images(model: dict[str, Any], scope: str, side: int) -> dict[str, Any]:
    """Keep the preprocessor from enlarging the small images."""
    preprocessor = model.get('data_preprocessor') or {}
    if scope == 'mmseg' and preprocessor.get('size'):
        preprocessor['size'] = (side, side)
    if scope != 'mmpretrain':
        preprocessor.pop('batch_augments', None)
    return model


def _batch(cfg: Config, scope: str, side: int) -> dict[str, list]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, side, side), generator=generator, dtype=torch.uint8)
              for _ in range(BATCH)]
    sample = dict(
        mmdet=_detection, mmrotate=_rotated_detection, mmseg=_segmentation, mmpretrain=_label,
    )[scope]
    numbers = [part.get(key) for part in dicts_in(cfg.model)
               for key in ('num_classes', 'num_things_classes')]
    num_classes = min((n for n in numbers if isinstance(n, int)), default=2)
    return dict(inputs=images, data_samples=[
        sample(i, side, max(num_classes, 1), cfg, generator) for i in range(BATCH)])


def _detection(
    index: int, side: int, num_classes: int, cfg: Config, generator: torch.Generator
) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmengine.structures import InstanceData, PixelData
    boxes = torch.tensor(_BOXES) * side
    sample = DetDataSample(metainfo=_meta(index, side))
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(boxes), labels=torch.tensor([0, num_classes - 1]))
    sample.ignored_instances = InstanceData(
        bboxes=HorizontalBoxes(boxes[:0]), labels=torch.zeros(0, dtype=torch.int64))
    if _loads_masks(cfg):
        sample.gt_instances.masks = _masks(boxes, side)
        sample.ignored_instances.masks = _masks(boxes[:0], side)
    # The first class that is not a thing, where a method tells things from the rest.
    stuff = max((part.get('num_things_classes') or 0 for part in dicts_in(cfg.model)), default=0)
    sample.gt_sem_seg = PixelData(sem_seg=torch.full((1, side, side), stuff))
    if not cfg.model.get('rpn_head'):
        # Detectors without a proposal network read them from the data.
        sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
    return sample


def _rotated_detection(
    index: int, side: int, num_classes: int, cfg: Config, generator: torch.Generator
) -> Any:
    from mmrotate.structures.bbox import RotatedBoxes
    sample = _detection(index, side, num_classes, cfg, generator)
    for instances in (sample.gt_instances, sample.ignored_instances):
        instances.bboxes = instances.bboxes.convert_to('rbox')
    # A quarter of a right angle, in radians.
    sample.gt_instances.bboxes = RotatedBoxes(
        sample.gt_instances.bboxes.tensor + torch.tensor([0., 0., 0., 0., math.pi / 8]))
    return sample


def _loads_masks(cfg: Config) -> bool:
    transforms = list(dicts_in(cfg.get('train_dataloader')))
    # Panoptic annotations are loaded with their masks unless a config says otherwise.
    return any(part.get('with_mask', part.get('type') == 'LoadPanopticAnnotations')
               for part in transforms)


def _masks(boxes: torch.Tensor, side: int) -> Any:
    import numpy as np
    from mmdet.structures.mask import BitmapMasks
    masks = np.zeros((len(boxes), side, side), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    return BitmapMasks(masks, side, side)


def _segmentation(
    index: int, side: int, num_classes: int, cfg: Config, generator: torch.Generator
) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    labels = torch.randint(num_classes, (1, side // 8, side // 8), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :8] = _IGNORED
    sample = SegDataSample(metainfo=_meta(index, side))
    sample.gt_sem_seg = PixelData(data=labels)
    return sample


def _label(
    index: int, side: int, num_classes: int, cfg: Config, generator: torch.Generator
) -> Any:
    from mmpretrain.structures import DataSample
    return DataSample(metainfo=_meta(index, side)).set_gt_label([index % num_classes])


def _meta(index: int, side: int) -> dict[str, Any]:
    size = (side, side)
    return dict(img_id=index, ori_shape=size, img_shape=size, pad_shape=size,
                scale_factor=(1., 1.), flip=False, flip_direction=None,
                border=(0., 0., 0., 0.))
