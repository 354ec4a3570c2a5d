"""Images and label maps of the same name."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from .common import (Split, check_num_classes, count_lines, shorten, load, paragraph, plural, read,
                     require, spread_indices)
from .drawing import enlargement, write_panels

IGNORED = 255  # what mmseg makes of a zero label that is reduced, and of classes left out


def check(split: Split) -> Iterator[str]:
    """Yield lines about the images and the label maps.

    Raises:
        ConfigError: the first problem.
    """
    dataset = split.dataset
    images, labels = (_folder(split, *entry) for entry in (
        ('img_path', 'images'), ('seg_map_path', 'labels')))
    if dataset.ann_file:
        require(split, dataset.ann_file, 'the list of images')
    _check_any(split, images)
    load(split)
    yield f'  {images}/**/*{dataset.img_suffix}: {plural(len(dataset), "image")}'
    _check_labels_exist(split, labels)
    yield f'  {labels}/**/*{dataset.seg_map_suffix}: a label map for each'
    check_num_classes(split)
    _check_zero_label(split)
    yield from _check_labels(split)


def draw(split: Split, index: int, path: Path) -> None:
    """Draw an image and, beside it, its classes in their colours."""
    from mmengine.dataset import Compose
    from mmseg.registry import TRANSFORMS
    from mmseg.visualization import SegLocalVisualizer
    # It need not be one of those that have been opened.
    height, width = _read_label(split, index).shape
    info = split.dataset.get_data_info(index)
    pipeline = Compose([TRANSFORMS.build(step) for step in (
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='Resize', scale_factor=enlargement(height, width), keep_ratio=True),
        dict(type='PackSegInputs', meta_keys=()))])
    sample = pipeline(info)
    image = np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
    visualizer = SegLocalVisualizer(alpha=0.7)
    visualizer.dataset_meta = split.dataset.metainfo
    visualizer.add_datasample(
        '', image, sample['data_samples'], draw_pred=False, with_labels=False, out_file=str(path))
    palette = split.dataset.metainfo['palette']
    shown = np.unique(sample['data_samples'].gt_sem_seg.data.numpy())
    legend = [(split.classes[i], tuple(palette[i])) for i in shown if i < len(split.classes)]
    panels = [image, mmcv.imread(path, channel_order='rgb')]
    write_panels(path, panels, [Path(info['img_path']).name, 'labels'], legend)


def _folder(split: Split, key: str, what: str) -> Path:
    path = split.dataset.data_prefix.get(key)
    if path is None:
        raise split.problem(f'data_prefix has no {key}', f'Name the folder of the {what} there')
    return require(split, path, f'the folder of the {what}')


def _check_any(split: Split, images: Path) -> None:
    suffix = split.dataset.img_suffix
    if split.dataset.ann_file or next(images.rglob(f'*{suffix}'), None) is not None:
        return
    found = sorted({path.suffix for path in images.rglob('*') if path.is_file()})
    raise split.problem(
        f'{images} holds no file that ends in {suffix!r}; there are files of '
        f'{shorten(found) or "no kind"}', 'Set img_suffix to the ending of the images')


def _check_labels_exist(split: Split, labels: Path) -> None:
    dataset = split.dataset
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    missing = [info for info in infos if not Path(info['seg_map_path']).exists()]
    if not missing:
        return
    first = missing[0]
    raise split.problem(
        f'{len(missing)} of {len(dataset)} images have no label map; the first is '
        f'{Path(first["img_path"]).name}, for which {first["seg_map_path"]} is missing',
        _remedy_for_missing(split, labels))


def _remedy_for_missing(split: Split, labels: Path) -> str:
    """Return how the label maps of a known data set are made, or where to look."""
    kind, root = type(split.dataset).__name__, split.dataset.data_root
    if kind == 'CityscapesDataset' and next(labels.rglob('*_labelIds.png'), None):
        return ('The download has labelIds only; make labelTrainIds with: pip install '
                f'cityscapesscripts && CITYSCAPES_DATASET={root} csCreateTrainIdLabelImgs')
    if kind == 'COCOStuffDataset' and next(labels.glob('*.png'), None):
        return (f'The download has ids with gaps; make labelTrainIds in {root} with '
                "mmseg's coco_stuff164k.py, as docs/datasets.md shows")
    found = sorted(path.name for path in labels.rglob('*') if path.is_file())
    return (f'The name must be that of the image with {split.dataset.seg_map_suffix!r} in the '
            f'place of {split.dataset.img_suffix!r}; {labels} holds '
            f'{shorten(found, 3) or "nothing"}')


def _check_zero_label(split: Split) -> None:
    if type(split.dataset).__name__ == 'ADE20KDataset' and not split.dataset.reduce_zero_label:
        raise split.problem(
            'ADE20K numbers its classes from 1 and means "other" by label 0, but '
            'reduce_zero_label is False, so that every class would be taken for the next',
            'Remove reduce_zero_label=False from the data set')


def _check_labels(split: Split) -> Iterator[str]:
    """Return the share of each class in the pixels of the opened label maps."""
    pixels = np.zeros(256, np.int64)
    indices = spread_indices(len(split.dataset), split.max_files)
    for index in indices:
        pixels += np.bincount(_read_label(split, index).ravel(), minlength=256)
    count, total = len(split.classes), pixels.sum()
    if pixels[:count].sum() == 0:
        raise split.problem('no pixel of the labels has a class; all are to be ignored',
                            'The label maps are empty, or reduce_zero_label does not fit them')
    ignored = _ignore_index(split)
    # One that eight bits cannot hold, such as -100, stands in no label.
    share = (pixels[ignored] if 0 <= ignored < len(pixels) else 0) / total
    yield f'  opened: {plural(len(indices), "label map")}; {share:.1%} of the pixels ignored'
    order = [i for i in np.argsort(-pixels[:count], kind='stable') if pixels[i]]
    yield from count_lines(
        'pixels by class', {split.class_name(i): f'{pixels[i] / total:.1%}' for i in order})
    absent = [split.class_name(i) for i in range(count) if not pixels[i]]
    if absent:
        yield from paragraph(f'without a pixel: {shorten(absent, 12)}')


def _read_label(split: Split, index: int) -> np.ndarray:
    """`[H, W]` uint8, as mmseg gives it to the model.

    Raises:
        ConfigError: the label map is no index image, or does not fit image and classes.
    """
    info = split.dataset.get_data_info(index)
    path = Path(info['seg_map_path'])
    label = read(split, path, flag='unchanged', backend='pillow')
    if label.ndim != 2:
        raise split.problem(
            f'{path} is a colour picture, {label.shape}, not a map of class numbers',
            'Save each pixel as the number of its class, in a PNG of one channel')
    size = read(split, info['img_path']).shape[:2]
    if label.shape != size:
        raise split.problem(
            f'{path} is {label.shape[1]} x {label.shape[0]}, but its image is '
            f'{size[1]} x {size[0]}', 'Image and label must have the same size')
    given = _label(info)
    _check_values(split, path, label, given)
    return given


def _check_values(split: Split, path: Path, label: np.ndarray, given: np.ndarray) -> None:
    """Raise a ConfigError if a label, as mmseg reads it, is neither a class nor ignored."""
    count, reduced = len(split.classes), bool(split.dataset.reduce_zero_label)
    ignored = _ignore_index(split)
    # mmseg cuts labels to eight bits.
    is_wrong = ~np.isin(given, [*range(count), ignored]) | (label > 255)
    wrong = np.unique(label[is_wrong]).tolist()
    if not wrong:
        return
    original = type(split.dataset).METAINFO.get('classes') or split.classes
    names = f'{count} classes, {int(reduced)} to {len(original) - 1 + reduced}'
    remedy = (f'Number the classes from {int(reduced)}; what is to be ignored gets {ignored}, or '
              'set ignore_index in head and metric')
    if IGNORED not in wrong and IGNORED in given[is_wrong]:
        remedy = (f'mmseg makes {IGNORED} of it, but the head ignores {ignored}: set ignore_index='
                  f'{IGNORED} in head and metric')
    if wrong == [count] and not reduced:
        remedy = ('If label 0 means "other", set reduce_zero_label=True in the data sets; if '
                  f'{count} means "ignore", set ignore_index={count} in head and metric')
    raise split.problem(f'{path} has the label {shorten(wrong)}; there are {names}', remedy)


def _label(info: dict[str, Any]) -> np.ndarray:
    from mmseg.datasets.transforms import LoadAnnotations
    return LoadAnnotations().transform(info)['gt_seg_map']


def _ignore_index(split: Split) -> int:
    head = (split.cfg.get('model') or {}).get('decode_head') or {}
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return head.get('ignore_index', IGNORED)
