"""Predictions drawn over their image."""
from collections.abc import Sequence

import cv2
import numpy as np

from xvit_mm.utils.prediction import Prediction

from .frame import Color, add_captions, add_legend

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MIN_SIDE = 320  # px; smaller pictures are enlarged, so that labels can be read,
_MAX_SIDE = 8192  # px; but no further than this, far below the 65535 of a JPEG
_OPACITY = 0.5  # of the colour of a mask or a class


def draw_prediction(
    image: np.ndarray,
    prediction: Prediction,
    classes: Sequence[str],
    palette: Sequence[Color],
    *,
    legend: bool = True,
) -> np.ndarray:
    """Draw a prediction over its image.

    image [H, W, 3] of uint8 in BGR, to a picture in BGR: boxes with class and score, instances and
    classes of pixels in the colours of `palette` (with a legend below), or the three best classes
    of the image above it. Small images are enlarged. Without the legend, whose height depends on
    the classes that are there, all frames of a video become pictures of one size.
    """
    short, long = sorted(image.shape[:2])
    factor = max(1, min(-(-_MIN_SIDE // short), _MAX_SIDE // long))
    picture = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    if prediction.label_map is not None:
        return _with_classes(picture, prediction.label_map, classes, palette, legend=legend)
    if prediction.class_scores is not None:
        best = [i for i in np.argsort(-prediction.class_scores)[:3]
                if np.isfinite(prediction.class_scores[i])]
        captions = [f'{classes[i]} {prediction.class_scores[i]:.2f}' for i in best]
        for caption in reversed(captions):
            picture = add_captions(picture, [caption], picture.shape[1])
        return picture
    _draw_instances(picture, prediction, classes, palette, factor)
    return picture


def _with_classes(
    picture: np.ndarray,
    label_map: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Color],
    *,
    legend: bool,
) -> np.ndarray:
    shown = [int(label) for label in np.unique(label_map) if label < len(classes)]
    large = _enlarged(label_map, picture)
    for label in shown:
        _tint(picture, large == label, tuple(int(value) for value in palette[label][::-1]))
    entries = [(classes[label], tuple(palette[label])) for label in shown]
    return add_legend(picture, entries) if legend else picture


def _enlarged(labels: np.ndarray, picture: np.ndarray) -> np.ndarray:
    size = picture.shape[1], picture.shape[0]
    large = cv2.resize(labels.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
    return large.astype(labels.dtype)


def _tint(picture: np.ndarray, where: np.ndarray, color: Color) -> None:
    picture[where] = (1 - _OPACITY) * picture[where] + _OPACITY * np.array(color)


def _draw_instances(
    picture: np.ndarray,
    prediction: Prediction,
    classes: Sequence[str],
    palette: Sequence[Color],
    factor: int,
) -> None:
    """Draw masks, then boxes, then names, so that no name lies under a mask.

    The best is drawn last, on top of the others, but is the first to choose the place of its name.
    """
    colors = [tuple(int(value) for value in palette[label][::-1]) for label in prediction.labels]
    thickness = max(1, round(min(picture.shape[:2]) / 300))
    if prediction.masks is not None:
        for mask, color in zip(prediction.masks[::-1], colors[::-1]):
            _draw_mask(picture, _enlarged(mask, picture), color, max(1, thickness // 2))
    corners = [[round(float(value)) for value in box * factor] for box in prediction.boxes]
    for (x1, y1, x2, y2), color in zip(corners[::-1], colors[::-1]):
        cv2.rectangle(picture, (x1, y1), (x2, y2), color, thickness)
    texts = [f'{classes[label]} {score:.2f}'
             for label, score in zip(prediction.labels, prediction.scores)]
    scale = max(0.4, min(picture.shape[:2]) / 1400)
    places: list[tuple[int, int, int, int]] = []
    for text, box in zip(texts, corners):
        (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
        places.append(_free_place(box, (width, height + baseline), picture.shape[:2], places))
    for text, place, color in list(zip(texts, places, colors))[::-1]:
        _draw_text(picture, text, place, color, scale, max(1, thickness // 2))


def _draw_mask(picture: np.ndarray, mask: np.ndarray, color: Color, thickness: int) -> None:
    """Tint a mask and outline it, in a lighter colour, which parts instances of one class."""
    _tint(picture, mask, color)
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    lighter = tuple((value + 2 * 255) // 3 for value in color)
    cv2.drawContours(picture, outlines, -1, lighter, thickness, cv2.LINE_AA)


def _free_place(
    box: Sequence[int],
    size: tuple[int, int],
    shape: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Where a name of (width, height) goes, inside the picture and off other names if it can be.

    Places are (left, top, right, bottom): above the box, inside it at the top, below it, inside it
    at the bottom, and a line or two away from these; on the left, in the middle and on the right.
    """
    width, height = size
    # A box may reach beyond the picture.
    x1, x2 = (min(max(x, 0), shape[1]) for x in box[::2])
    y1, y2 = (min(max(y, 0), shape[0]) for y in box[1::2])
    places = []
    tops = (y1 - height, y1, y2, y2 - height, y1 - 2 * height, y1 + height, y1 - 3 * height,
            y1 + 2 * height)
    for left in (x1, (x1 + x2 - width) // 2, x2 - width):
        for top in tops:
            left = min(max(left, 0), max(shape[1] - width, 0))
            if 0 <= top <= shape[0] - height:
                places.append((left, top, left + width, top + height))
    free = [place for place in places if not any(_overlap(place, other) for other in taken)]
    top, left = min(y1, max(shape[0] - height, 0)), min(x1, max(shape[1] - width, 0))
    return (free or places or [(left, top, left + width, top + height)])[0]


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    return (one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


def _draw_text(
    picture: np.ndarray,
    text: str,
    place: tuple[int, int, int, int],
    color: Color,
    scale: float,
    thickness: int,
) -> None:
    """Write a text on a patch of the colour."""
    left, top, right, bottom = place
    baseline = cv2.getTextSize(text, _FONT, scale, 1)[1]
    cv2.rectangle(picture, (left, top), (right, bottom), color, cv2.FILLED)
    is_light = np.dot(color, (0.114, 0.587, 0.299)) > 140
    cv2.putText(picture, text, (left, bottom - baseline // 2 - 1), _FONT, scale,
                (0, 0, 0) if is_light else (255, 255, 255), thickness, cv2.LINE_AA)
