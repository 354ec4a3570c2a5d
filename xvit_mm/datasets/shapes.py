"""A small generated data set: geometric shapes on textured backgrounds, in COCO's layout.

`draw_scene` knows nothing of files and COCO: a semantic map or a class label can be had from the
same `Scene`. `make_shapes_dataset` writes scenes as a COCO data set.
"""
from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .coco_format import coco_annotation

METAINFO = {
    'classes': ('ellipse', 'rectangle', 'triangle', 'star', 'ring'),
    'palette': [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167)],
}

# Raise it when the same settings give other files: sets of an older version are then replaced.
_VERSION = 4
_SPLITS = ('train2017', 'val2017')
_SETTINGS_FILE = 'shapes.json'
_CONTENTS = {'annotations', _SETTINGS_FILE, *_SPLITS}

_IMAGE_SIDES = (160, 201)  # px
_NUM_OBJECTS = (3, 8)
_EMPTY_EVERY = 16  # one image in so many holds no object
_MIN_VISIBLE = 0.5  # of the part of an object that lies in the image
_SIDES = ((20, 30), (36, 76), (98, 112))  # px, square root of the area: COCO's three sizes
_SIDE_SHARES = (0.25, 0.55, 0.2)
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """An image and the visible parts of its objects, which never overlap.

    Attributes:
        image: `[H, W, 3]` uint8, BGR.
        labels: `[N]` int64, index into `METAINFO['classes']`.
        masks: `[N, H, W]` bool.
    """

    image: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def make_shapes_dataset(
    root: str | os.PathLike,
    *,
    num_train: int = 1600,
    num_val: int = 80,
    seed: int = 0,
) -> bool:
    """Generate the data set in folder `root` unless it is already there with the same settings.

    The set appears as a whole or not at all. The same settings give the same bytes, and a larger
    set begins with the images of a smaller one. A set made here with other settings is replaced.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: a count below 1 or a negative seed.
        FileExistsError: `root` holds something that was not made here.
    """
    settings = _check_settings(num_train=num_train, num_val=num_val, seed=seed)
    root = Path(root).absolute()
    if _is_complete(root, settings):
        return False
    _refuse_foreign(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    partial = root.with_name(f'{_partial_prefix(root)}{os.getpid()}')
    try:
        _write_dataset(partial, settings)
        _move_into_place(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def draw_scene(rng: np.random.Generator, *, num_objects: int) -> Scene:
    """Draw shapes one over the other; a later one hides what lies below it.

    A shape that would hide more than half of another is left out, so there may be fewer than
    `num_objects`.
    """
    height, width = (int(side) for side in rng.integers(*_IMAGE_SIDES, size=2))
    image = _background(rng, height, width)
    colors = [image.mean((0, 1))]
    labels: list[int] = []
    wholes = np.zeros((0, height, width), bool)
    masks = wholes
    for _ in range(num_objects):
        label = int(rng.integers(len(METAINFO['classes'])))
        coverage = _rasterise(_outline(rng, label, height, width), height, width)
        mask = coverage >= 0.5
        beneath = masks & ~mask
        if not _all_visible(beneath, wholes):
            continue
        colors.append(_distinct_color(rng, label, colors))
        image += coverage[..., None] * (_fill(rng, colors[-1], height, width) - image)
        labels.append(label)
        wholes = np.concatenate([wholes, mask[None]])
        masks = np.concatenate([beneath, mask[None]])
    image += rng.normal(0, 3, image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), np.array(labels, np.int64), masks)


def _all_visible(masks: np.ndarray, wholes: np.ndarray) -> bool:
    return bool((masks.sum((1, 2)) >= _MIN_VISIBLE * wholes.sum((1, 2))).all())


def _outline(
    rng: np.random.Generator,
    label: int,
    height: int,
    width: int,
) -> list[np.ndarray]:
    """Closed curves `[K, 2]` (x, y) in pixels; a second curve cuts a hole."""
    low, high = _SIDES[rng.choice(len(_SIDES), p=_SIDE_SHARES)]
    side = rng.uniform(low, high)
    curves = _UNIT_SHAPES[METAINFO['classes'][label]](rng)
    center = np.array([_position(rng, side, width), _position(rng, side, height)])
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    scale = side / np.sqrt(_enclosed_area(curves[0]))
    return [scale * curve @ np.array([[cos, sin], [-sin, cos]]) + center for curve in curves]


def _position(rng: np.random.Generator, side: float, length: int) -> float:
    """Centre of an object along one axis: at most a little of it lies outside the image."""
    margin = min(0.4 * side, 0.45 * length)
    return rng.uniform(margin, length - margin)


def _enclosed_area(curve: np.ndarray) -> float:
    x, y = curve.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _ellipse(rng: np.random.Generator) -> list[np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return [np.stack([rng.uniform(1, 1.8) * np.cos(angles), np.sin(angles)], 1)]


def _rectangle(rng: np.random.Generator) -> list[np.ndarray]:
    x = rng.uniform(1, 2)
    return [np.array([(-x, -1), (x, -1), (x, 1), (-x, 1)])]


def _triangle(rng: np.random.Generator) -> list[np.ndarray]:
    return [np.array([(-1, 0.7), (1, 0.7), (rng.uniform(-0.4, 0.4), rng.uniform(-1.4, -0.8))])]


def _star(rng: np.random.Generator) -> list[np.ndarray]:
    angles = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1)
    return [np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    outer = _ellipse(rng)[0]
    return [outer, rng.uniform(0.45, 0.62) * outer]


_UNIT_SHAPES = {
    'ellipse': _ellipse,
    'rectangle': _rectangle,
    'triangle': _triangle,
    'star': _star,
    'ring': _ring,
}


def _rasterise(curves: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Share of each pixel that the shape covers, `[H, W]` float32 in [0, 1]."""
    canvas = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    points = [np.round(curve * _SUPERSAMPLING - 0.5).astype(np.int32) for curve in curves]
    cv2.fillPoly(canvas, points, 255)
    share = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return share.astype(np.float32) / 255


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """`[H, W, 3]` float32: a mix of two related colours."""
    first = rng.uniform(50, 205, 3)
    second = first + rng.uniform(-45, 45, 3)
    texture = (_clouds, _gradient, _stripes)[rng.integers(3)](rng, height, width)
    return (first + texture[..., None] * (second - first)).astype(np.float32)


def _fill(
    rng: np.random.Generator,
    color: np.ndarray,
    height: int,
    width: int,
) -> np.ndarray:
    """`[H, W, 3]` float32: one colour, shaded."""
    return (color + 40 * (_gradient(rng, height, width)[..., None] - 0.5)).astype(np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    texture = np.zeros((height, width))
    for cells, weight in ((4, 1.0), (12, 0.6), (48, 0.4)):
        grid = rng.uniform(-1, 1, (cells, cells))
        texture += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return 0.5 + texture / 2


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    ramp = _ramp(rng, height, width)
    return (ramp - ramp.min()) / np.ptp(ramp)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    period = rng.uniform(8, 40)
    return 0.5 + 0.5 * np.sin(2 * np.pi * _ramp(rng, height, width) / period)


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Distance in pixels along a random direction, `[H, W]`."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.arange(height)[:, None] * np.sin(angle) + np.arange(width) * np.cos(angle)


def _distinct_color(
    rng: np.random.Generator,
    label: int,
    others: list[np.ndarray],
) -> np.ndarray:
    """Return the colour, of a few near that of the class, that differs most from all others.

    The colour is a hint at the class, so that a detector learns within minutes; colours of
    different classes overlap, so that it has to look at the shape as well.
    """
    around = np.array(METAINFO['palette'][label][::-1])
    candidates = (around + rng.uniform(-50, 50, (4, 3))).clip(25, 230)
    distances = np.linalg.norm(candidates[:, None] - np.array(others), axis=-1).min(1)
    return candidates[distances.argmax()]


def _check_settings(*, num_train: int, num_val: int, seed: int) -> dict:
    for name, value, least in (
        ('num_train', num_train, 1),
        ('num_val', num_val, 1),
        ('seed', seed, 0),
    ):
        if value < least:
            raise ValueError(f'{name} is {value}; it must be at least {least}')
    return {'version': _VERSION, 'num_train': num_train, 'num_val': num_val, 'seed': seed}


def _is_complete(root: Path, settings: dict) -> bool:
    if _made_settings(root) != settings:
        return False
    counts = (settings['num_train'], settings['num_val'])
    return all(
        (root / 'annotations' / f'instances_{split}.json').is_file()
        and len(list((root / split).glob('*.jpg'))) == count
        for split, count in zip(_SPLITS, counts))


def _made_settings(root: Path) -> dict | None:
    """Settings of the set in `root`, or None where there is no set made here."""
    try:
        settings = json.loads((root / _SETTINGS_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return settings if isinstance(settings, dict) and 'num_train' in settings else None


def _refuse_foreign(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise FileExistsError(f'{root} is a file; name a folder for the data set')
    names = {entry.name for entry in root.iterdir()}
    foreign = names if _made_settings(root) is None else names - _CONTENTS
    if foreign:
        raise FileExistsError(
            f'{root} holds {sorted(foreign)[0]!r}, which is not of a generated data set; nothing '
            'was written: name another folder, or empty this one')


def _partial_prefix(root: Path) -> str:
    return f'.{root.name}.partial-'


def _remove_leftovers(root: Path) -> None:
    """Remove what a killed run left beside `root`; a set is made in far less than an hour."""
    for folder in root.parent.iterdir():
        is_partial = folder.name.startswith(_partial_prefix(root))
        if is_partial and time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _write_dataset(root: Path, settings: dict) -> None:
    (root / 'annotations').mkdir(parents=True)
    counts = (settings['num_train'], settings['num_val'])
    for split_index, (split, count) in enumerate(zip(_SPLITS, counts)):
        (root / split).mkdir()
        annotations = _write_split(root / split, count, settings['seed'], split_index)
        (root / 'annotations' / f'instances_{split}.json').write_text(
            json.dumps(annotations, separators=(',', ':')))
    (root / _SETTINGS_FILE).write_text(json.dumps(settings))


def _write_split(folder: Path, count: int, seed: int, split_index: int) -> dict:
    """Write the images of one split and return its COCO annotations."""
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(count):
        image_id = 1_000_000 * split_index + index + 1
        scene = _numbered_scene(seed, split_index, index)
        height, width = scene.image.shape[:2]
        name = f'{image_id:012d}.jpg'
        _write_jpeg(folder / name, scene.image)
        images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        for label, mask in zip(scene.labels.tolist(), scene.masks):
            annotations.append(coco_annotation(
                mask,
                annotation_id=1_000_000 * split_index + len(annotations) + 1,
                image_id=image_id,
                category_id=label + 1,
            ))
    return {
        'info': {'description': 'Generated shapes', 'version': str(_VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': _categories(),
    }


def _numbered_scene(seed: int, split_index: int, index: int) -> Scene:
    # One generator for each image: it does not depend on how many come before it.
    rng = np.random.default_rng([seed, split_index, index])
    is_empty = index % _EMPTY_EVERY == _EMPTY_EVERY // 2
    num_objects = 0 if is_empty else int(rng.integers(*_NUM_OBJECTS, endpoint=True))
    return draw_scene(rng, num_objects=num_objects)


def _categories() -> list[dict]:
    return [{'id': index, 'name': name, 'supercategory': 'shape'}
            for index, name in enumerate(METAINFO['classes'], start=1)]


def _write_jpeg(path: Path, image: np.ndarray) -> None:
    _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    path.write_bytes(data.tobytes())


def _move_into_place(partial: Path, root: Path) -> None:
    """Move the finished set to `root`, replacing a set made here."""
    if not root.exists():
        partial.rename(root)
        return
    replaced = root.with_name(f'{partial.name}-replaced')
    root.rename(replaced)
    try:
        partial.rename(root)
    except OSError:
        replaced.rename(root)
        raise
    shutil.rmtree(replaced)
