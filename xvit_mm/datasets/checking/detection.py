"""Boxes and masks in COCO's format."""
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv
import numpy as np

from xvit_mm.datasets.images import image_size

from .common import (Split, check_num_classes, count_lines, shorten, load, paragraph, plural, read,
                     require, spread_indices)
from .drawing import enlargement, write_panels

Kind = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_ID: Kind = _is_whole, 'a whole number'
_SIDE: Kind = lambda value: _is_finite(value) and value > 0, 'a number of pixels'
_NAME: Kind = lambda value: isinstance(value, str) and bool(value), 'a text'
_NEEDED: dict[str, dict[str, Kind]] = {
    'images': dict(id=_ID, file_name=_NAME, width=_SIDE, height=_SIDE),
    'annotations': dict(
        id=_ID, image_id=_ID, category_id=_ID, bbox=(lambda value: True, ''),
        area=(_is_finite, 'a finite number of pixels')),
    'categories': dict(id=_ID, name=_NAME),
}
_RULES = (
    'Dropped are boxes without area, with a side below one pixel, outside of their image, or '
    'marked to be ignored')
_BOX_REMEDY = 'Write bbox as [left, top, width, height] in pixels'


def check(split: Split) -> Iterator[str]:
    """Yield lines about the annotations and the images.

    Raises:
        ConfigError: the first problem.
    """
    ann_file = require(split, split.dataset.ann_file, 'the annotation file')
    folder = require(split, split.dataset.data_prefix.get('img') or '.', 'the folder of the images')
    content = _read(split, ann_file)
    count = len(content['images'])
    yield (f'  {ann_file}: {plural(count, "image")}, '
           f'{plural(len(content["annotations"]), "annotation")}')
    _check_evaluator(split, ann_file)
    _check_content(split, folder, content)
    yield f'  {folder}: all of these images'
    del content  # gigabytes, for COCO, which mmdet is about to read anew
    dropped = _load(split)
    if (used := len(split.dataset)) < count:
        yield (f'  used: {plural(used, "image")}; {count - used} filtered out by '
               f'{split.dataset.filter_cfg}')
    yield from _count(split, dropped)


def draw(split: Split, index: int, path: Path) -> None:
    """Draw the boxes, masks and classes of one image."""
    from mmdet.registry import TRANSFORMS
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.dataset import Compose
    info = split.dataset.get_data_info(index)
    read(split, info['img_path'])  # or else the pipeline fails less clearly
    masks = all('mask' in instance for instance in info['instances'])
    factor = enlargement(info['height'], info['width'])
    pipeline = Compose([TRANSFORMS.build(step) for step in (
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=masks),
        dict(type='Resize', scale_factor=factor, keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=()))])
    sample = pipeline(info)
    image = np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])
    instances = sample['data_samples'].gt_instances
    instances.bboxes = instances.bboxes.tensor
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = split.dataset.metainfo
    visualizer.add_datasample(
        '', image, sample['data_samples'], draw_pred=False, out_file=str(path))
    caption = f'{Path(info["img_path"]).name}: {plural(len(info["instances"]), "object")}'
    write_panels(path, [mmcv.imread(path, channel_order='rgb')], [caption])


def _read(split: Split, ann_file: Path) -> dict[str, Any]:
    if not ann_file.is_file():
        raise split.problem(
            f'{ann_file} is a folder', 'Set ann_file to the annotation file, not to its folder')
    try:
        content = json.loads(ann_file.read_bytes())
    except RecursionError:
        raise split.problem(
            f'{ann_file} nests its lists too deeply', 'Download or export it again') from None
    except ValueError as error:
        raise split.problem(
            f'{ann_file} is not JSON: {error}', 'Download or export it again') from None
    for name, checks in _NEEDED.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not entries or not isinstance(entries, list):
            raise split.problem(
                f'{ann_file} has no {name}', "COCO's format has lists of images, annotations and "
                'categories; files of test images have no annotations and cannot be evaluated')
        for entry in entries:
            _check_entry(split, ann_file, name, entry, checks)
    return content


def _check_entry(
    split: Split, ann_file: Path, name: str, entry: Any, checks: Mapping[str, Kind]
) -> None:
    """Raise a ConfigError unless an entry has all keys, with values of the right kinds."""
    for key, (is_right, what) in checks.items():
        if not isinstance(entry, dict) or key not in entry:
            raise split.problem(
                f'{ann_file}: an entry of {name} has no {key}: {str(entry)[:80]} ...',
                f'mmdet needs {", ".join(checks)} in each')
        if not is_right(entry[key]):
            raise split.problem(
                f'{ann_file}: an entry of {name} has {key}={entry[key]!r:.80}: {str(entry)[:80]} '
                '...', f'Write {key} as {what}')


def _check_content(split: Split, folder: Path, content: dict[str, Any]) -> None:
    """Raise a ConfigError if classes, ids, images and boxes do not fit together."""
    _check_categories(split, content['categories'])
    _check_ids(split, content)
    check_num_classes(split)
    _check_files(split, folder, content['images'])
    _check_boxes(split, content['images'], content['annotations'])
    _check_sizes(split, folder, content['images'])
    _check_masks(split, content['annotations'])


def _check_evaluator(split: Split, ann_file: Path) -> None:
    metrics = split.cfg.get(f'{split.name}_evaluator') or []
    for metric in [metrics] if isinstance(metrics, Mapping) else metrics:
        other = metric.get('ann_file')
        if other and Path(other).absolute() != ann_file.absolute():
            raise split.problem(
                f'{split.name}_evaluator.ann_file is {other!r}, but the data set reads '
                f"'{ann_file}'", 'Give both the same file; the metric looks images up in it')


def _check_categories(split: Split, categories: list[dict[str, Any]]) -> None:
    names = [category['name'] for category in categories]
    missing = [name for name in split.classes if name not in names]
    if missing:
        raise split.problem(
            f'the config has {len(split.classes)} classes, of which the annotation file lacks '
            f'{shorten(missing)}; it has {shorten(names)}',
            f'Set metainfo=dict(classes={_as_tuple(names)}) in the data sets and num_classes='
            f'{len(names)} in the heads')
    used = [name for name in names if name in split.classes]
    if used != list(split.classes):
        raise split.problem(
            f'the config names the classes in the order {shorten(split.classes)}, the annotation '
            f'file in the order {shorten(used)}, which is how mmdet numbers them',
            f'Set metainfo=dict(classes={_as_tuple(used)})')


def _as_tuple(names: list[str]) -> str:
    shown = ', '.join(map(repr, names[:8]))
    return f'({shown}, ...)' if len(names) > 8 else f'({shown},)'


def _check_ids(split: Split, content: dict[str, Any]) -> None:
    for key, owner in (('image_id', 'images'), ('category_id', 'categories')):
        ids = {entry['id'] for entry in content[owner]}
        if len(ids) < len(content[owner]):
            raise split.problem(f'two {owner} have the same id', 'Number them anew')
        lost = [entry for entry in content['annotations'] if entry[key] not in ids]
        if lost:
            raise split.problem(
                f'{len(lost)} annotations have a {key} that none of the {owner} has, the first '
                f'(id {lost[0]["id"]}) {lost[0][key]!r}; the {owner} have {shorten(sorted(ids))}',
                'Write ids as the lists have them; a shift by one is the usual cause')
    if len({entry['id'] for entry in content['annotations']}) < len(content['annotations']):
        raise split.problem('two annotations have the same id', 'Number them anew')


def _check_files(split: Split, folder: Path, images: list[dict[str, Any]]) -> None:
    missing = [entry['file_name'] for entry in images if not (folder / entry['file_name']).exists()]
    if missing:
        raise split.problem(
            f'{len(missing)} of {len(images)} images of the annotation file are not in {folder}, '
            f'the first is {missing[0]!r}',
            'Download them, or correct data_prefix: it is put before file_name')


def _check_boxes(
    split: Split, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> None:
    """Raise a ConfigError if the boxes do not look like COCO's."""
    wrong = [entry for entry in annotations if not _is_box(entry['bbox'])]
    if wrong:
        raise split.problem(
            f'{len(wrong)} of {len(annotations)} annotations have a bbox that is not four finite '
            f'numbers, the first (id {wrong[0]["id"]}) {wrong[0]["bbox"]!r}', _BOX_REMEDY)
    sizes = {entry['id']: (entry['width'], entry['height']) for entry in images}
    outside, tiny = [], []
    for entry in annotations:
        (left, top, width, height), limits = entry['bbox'], sizes[entry['image_id']]
        if (left + width > limits[0] + 1 or top + height > limits[1] + 1
                or min(left, top) < -1):
            outside.append(entry)
        if width < 1 or height < 1:
            tiny.append(entry)
    for entries, what in ((outside, 'reach beyond their image'), (tiny, 'are below one pixel')):
        if 10 * len(entries) > len(annotations):
            raise split.problem(
                f'{len(entries)} of {len(annotations)} boxes {what}, the first is '
                f'{entries[0]["bbox"]} (annotation {entries[0]["id"]})', _BOX_REMEDY)


def _is_box(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_finite, bbox))


def _check_sizes(split: Split, folder: Path, images: list[dict[str, Any]]) -> None:
    for index in spread_indices(len(images), split.max_files):
        entry = images[index]
        try:
            size = image_size(folder / entry['file_name'])
        except ValueError as error:
            raise split.problem(str(error), 'Remove or replace the file') from None
        if size != (entry['width'], entry['height']):
            raise split.problem(
                f'{entry["file_name"]} is {size[0]} x {size[1]}, but the annotation file says '
                f'{entry["width"]} x {entry["height"]}',
                'Mend width and height if the boxes fit the image, else take the original images')


def _check_masks(split: Split, annotations: list[dict[str, Any]]) -> None:
    without = [entry['id'] for entry in annotations if not entry.get('segmentation')]
    if without and 'mask_head' in str(split.cfg.get('model')):
        raise split.problem(
            f'the model learns masks, but {len(without)} of {len(annotations)} annotations have no '
            f'segmentation, the first has the id {without[0]}',
            'Take a config without masks, for instance a RetinaNet, or annotate them')


def _load(split: Split) -> list[dict[str, Any]]:
    """Let mmdet read the data set; return the annotations that its rules drop."""
    dataset, dropped = split.dataset, []
    parse = dataset.parse_data_info

    def parse_and_compare(raw: dict[str, Any]) -> Any:
        info = parse(raw)
        given = [a for a in raw['raw_ann_info'] if a['category_id'] in dataset.cat_ids]
        if len(info['instances']) < len(given):
            dropped.extend(annotation for annotation in given if not parse(
                {**raw, 'raw_ann_info': [annotation]})['instances'])
        return info

    dataset.parse_data_info = parse_and_compare
    try:
        load(split)
    finally:
        del dataset.parse_data_info
    return dropped


def _count(split: Split, dropped: list[dict[str, Any]]) -> Iterator[str]:
    """Yield lines with boxes and masks by class, as mmdet passes them to the model.

    Raises:
        ConfigError: there are none to learn from or to compare with.
    """
    counts: Counter[int] = Counter()
    crowds = masks = 0
    for index in range(len(split.dataset)):
        for instance in split.dataset.get_data_info(index)['instances']:
            counts[instance['bbox_label']] += 1
            crowds += instance['ignore_flag']
            masks += 'mask' in instance
    if counts.total() == crowds:
        raise split.problem(
            f'no box is left: {_reasons(dropped) or "all are crowds, which are ignored"}', _RULES)
    yield f'  boxes: {counts.total()}, {crowds} of them crowds; {masks} with a mask'
    if dropped:
        yield from paragraph(f'{_reasons(dropped)}. {_RULES}')
    yield from count_lines(
        'boxes by class', {split.class_name(i): str(n) for i, n in counts.most_common()})
    absent = [split.class_name(i) for i in range(len(split.classes)) if not counts[i]]
    if absent:
        yield from paragraph(f'without a box: {shorten(absent, 12)}')


def _reasons(dropped: list[dict[str, Any]]) -> str:
    if not dropped:
        return ''
    first = dropped[0]
    return (f'mmdet drops {plural(len(dropped), "annotation")}, the first (id {first["id"]}) with '
            f'bbox {first["bbox"]} and area {first["area"]:g}')
