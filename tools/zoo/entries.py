"""Describe each shipped config from its name and its content."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from xvit_mm.checkpoints import CheckpointError, catalogue, official_model
from xvit_mm.utils.complexity import Cost
from xvit_mm.utils.config import load_config
from xvit_mm.utils.shipped_configs import list_configs, list_renamed

from .results import Results, read_results

COLLECTIONS = ('CrossFormer', 'CrossViT', 'XFormer', 'VT', 'Baselines')


@dataclass(frozen=True)
class Method:
    """A method: its name, its part of long names, and the task as `mim` calls it."""

    name: str
    slug: str
    task: str


_DETECTION, _INSTANCES = 'Object Detection', 'Instance Segmentation'
_SEGMENTATION, _CLASSIFICATION = 'Semantic Segmentation', 'Image Classification'

# By the beginning of a config's name; what has none of these is a classifier.
METHODS = {
    'retinanet': Method('RetinaNet', 'retinanet', _DETECTION),
    'yolov3': Method('YOLOv3', 'yolov3', _DETECTION),
    'mask_rcnn': Method('Mask R-CNN', 'mask-rcnn', _INSTANCES),
    'cascade_mask_rcnn': Method('Cascade Mask R-CNN', 'cascade-mask-rcnn', _INSTANCES),
    'fpn': Method('Semantic FPN', 'fpn', _SEGMENTATION),
    'vtfpn': Method('Semantic FPN', 'fpn', _SEGMENTATION),
    'segformer': Method('SegFormer head', 'segformer', _SEGMENTATION),
    'upernet': Method('UPerNet', 'upernet', _SEGMENTATION),
}
CLASSIFIER = Method('', '', _CLASSIFICATION)


@dataclass(frozen=True)
class Dataset:
    """A data set in words and in long names.

    size: the (height, width) for which papers count the cost; None for that of the test images.
    """

    name: str
    slug: str
    size: tuple[int, int] | None = None


# By the end of a config's name.
DATASETS = {
    'coco': Dataset('COCO', 'coco', (800, 1280)),
    'ade20k': Dataset('ADE20K', 'ade20k', (512, 512)),
    'cityscapes': Dataset('Cityscapes', 'cityscapes', (1024, 1024)),
    'cocostuff': Dataset('COCO-stuff', 'cocostuff', (800, 1216)),
    'lip': Dataset('LIP', 'lip'),
    'imagenet': Dataset('ImageNet-1k', 'in1k'),
    'cifar10': Dataset('CIFAR-10', 'cifar10'),
    'camvid': Dataset('CamVid', 'camvid'),
    'bccd': Dataset('BCCD', 'bccd'),
    'demo': Dataset('Generated shapes', 'shapes'),
}


@dataclass(frozen=True)
class Entry:
    """A config of the zoo.

    path: of the config, relative to the repository.
    old_names: names that the config had before.
    neck: the pyramid between backbone and head, where there is one.
    size: (height, width) for which the cost is counted.
    length: as ('Epochs', 12) or ('Iterations', 80000); repeated data count as often.
    batch: number of devices and images on each, for which the learning rate is.
    weights: the name of the file that the authors released for it, `official://NAME`.
    cost: None until it has been measured.
    """

    name: str
    path: Path
    cfg: Config
    collection: str
    method: Method
    backbone: str
    neck: str
    dataset: Dataset
    size: tuple[int, int]
    length: tuple[str, int]
    batch: tuple[int, int]
    results: Results
    old_names: tuple[str, ...] = ()
    weights: str = ''
    cost: Cost | None = None

    @property
    def batch_size(self) -> int:
        return self.batch[0] * self.batch[1]

    @property
    def model(self) -> str:
        """Method and backbone in words."""
        neck = ', VT-FPN' if self.neck == 'VT-FPN' else ''
        return f'{self.method.name} + {self.backbone}{neck}' if self.method.name else self.backbone

    @property
    def long_name(self) -> str:
        """The name as OpenMMLab would spell it: model, devices and images, length, data."""
        backbone = self.backbone.lower().replace('++', '-pp').replace(' ', '-')
        # In Semantic FPN the neck is part of the method.
        neck = self.neck.lower().replace('-', '')
        neck = '' if neck == self.method.slug else neck
        recipe = f'{self.batch[0]}xb{self.batch[1]}-{_length_slug(*self.length, self.method.task)}'
        size = _crop_size(self.cfg) if self.method.task == _SEGMENTATION else self.size
        data = self.dataset.slug
        if size not in (None, (224, 224), DATASETS['coco'].size):
            data += f'-{size[0]}x{size[1]}'
        return '_'.join(part for part in (self.method.slug, backbone, neck, recipe, data) if part)


def read_entries(root: Path, costs: Mapping[str, Cost] | None = None) -> list[Entry]:
    """Read the configs in `root`/configs, with their results and the costs that are known."""
    results, costs, renamed = read_results(root), costs or {}, list_renamed(root / 'configs')
    return [
        _entry(
            path, path.relative_to(root), results.get(path.stem, Results()), costs.get(path.stem),
            tuple(old for old, present in renamed.items() if present == path.stem))
        for path in list_configs(root / 'configs')]


def _entry(
    file: Path, path: Path, results: Results, cost: Cost | None, old_names: tuple[str, ...]
) -> Entry:
    cfg, name = load_config(file), path.stem
    prefixes = [prefix for prefix in METHODS if name.startswith(f'{prefix}_')]
    method = METHODS[prefixes[0]] if prefixes else CLASSIFIER
    dataset = DATASETS[name.rpartition('_')[2]]
    neck = cfg.model.get('neck', {}).get('type', '').rpartition('.')[2]
    customary = dataset.size if method.slug != 'yolov3' else None
    return Entry(
        name=name, path=path, cfg=cfg, collection=_collection(cfg.model), method=method,
        backbone=_backbone_name(cfg.model), neck={'FPN': 'FPN', 'VTFPN': 'VT-FPN'}.get(neck, ''),
        dataset=dataset, size=customary or _test_size(cfg), length=_length(cfg), batch=_batch(cfg),
        results=results, old_names=old_names, weights=_weights(cfg), cost=cost)


# What the content of a config says.


def _collection(model: Mapping[str, Any]) -> str:
    parts = [model.get(part, {}).get('type', '') for part in ('backbone', 'neck')]
    for part in parts:
        for collection in COLLECTIONS:
            if part.startswith(f'xvit_mm.{collection}'):
                return collection
    return 'Baselines'


def _weights(cfg: Config) -> str:
    try:
        address = official_model(cfg)
    except CheckpointError:
        return ''
    name = address.partition('://')[2]
    # Only ImageNet's classes are those of the released classifiers.
    is_same_task = catalogue()[name].config or cfg.filename.endswith('_imagenet.py')
    return name if is_same_task else ''


def _backbone_name(model: Mapping[str, Any]) -> str:
    if 'backbone' not in model:
        return f'{model["model_name"].replace("_", "-")} of timm'
    backbone = model['backbone']
    kind = backbone['type'].rpartition('.')[2]
    size = backbone.get('arch', backbone.get('depth', ''))
    if isinstance(size, dict):
        return f'{kind} of {size["embed_dims"]} channels'
    if kind == 'CrossFormer':
        return f'CrossFormer{"++" if size.startswith("pp_") else ""}-{size[-1].upper()}'
    kind = {'VTResNet': 'VT-ResNet', 'MixVisionTransformer': 'MiT-B0'}.get(kind, kind)
    size = size.removeprefix('r') if kind == 'VT-ResNet' else size
    return f'{kind}-{size}'.replace('_', '-') if size else kind


def _test_size(cfg: Config) -> tuple[int, int]:
    sizes = [transform.get('crop_size', transform.get('scale'))
             for transform in cfg.test_dataloader.dataset.pipeline
             if transform['type'] in ('Resize', 'CenterCrop')]
    # Scales are width and height.
    width, height = sizes[-1] if isinstance(sizes[-1], tuple) else (sizes[-1], sizes[-1])
    divisor = cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _crop_size(cfg: Config) -> tuple[int, int] | None:
    crops = [transform['crop_size'] for transform in cfg.train_dataloader.dataset.pipeline
             if transform['type'] == 'RandomCrop']
    return tuple(crops[-1]) if crops else None


def _length(cfg: Config) -> tuple[str, int]:
    if 'max_iters' in cfg.train_cfg:
        return 'Iterations', cfg.train_cfg.max_iters
    dataset = cfg.train_dataloader.dataset
    repeated = dataset['times'] if dataset['type'] == 'RepeatDataset' else 1
    return 'Epochs', cfg.train_cfg.max_epochs * repeated


def _length_slug(unit: str, number: int, task: str) -> str:
    if unit == 'Iterations':
        return f'{number // 1000}k'
    as_detectors_say = {12: '1x', 36: '3x'} if task in (_DETECTION, _INSTANCES) else {}
    return as_detectors_say.get(number, f'{number}e')


def _batch(cfg: Config) -> tuple[int, int]:
    on_one = cfg.train_dataloader.batch_size
    total = cfg.get('auto_scale_lr', {}).get('base_batch_size', on_one)
    return max(total // on_one, 1), on_one
