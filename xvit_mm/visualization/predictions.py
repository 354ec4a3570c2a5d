"""Predictions drawn over their image."""
from collections.abc import Sequence

import cv2
import numpy as np

from xvit_mm.utils.prediction import Prediction

from .frame import Color, add_captions, add_legend

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MIN_SIDE = 320  # px; smaller pictures are enlarged, so that labels can be read
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
    factor = max(1, -(-_MIN_SIDE // min(image.shape[:2])))
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
    # The best box is drawn last, on top of the others.
    for i in reversed(range(len(prediction.boxes))):
        label = int(prediction.labels[i])
        color = tuple(int(value) for value in palette[label][::-1])
        if prediction.masks is not None:
            _tint(picture, _enlarged(prediction.masks[i], picture), color)
        text = f'{classes[label]} {prediction.scores[i]:.2f}'
        _draw_box(picture, prediction.boxes[i] * factor, text, color)
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


def _draw_box(picture: np.ndarray, box: np.ndarray, text: str, color: Color) -> None:
    """Draw a box and, on a patch of its colour inside the picture, what it is."""
    short_side = min(picture.shape[:2])
    thickness = max(1, round(short_side / 300))
    scale = max(0.4, short_side / 1400)
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    cv2.rectangle(picture, (x1, y1), (x2, y2), color, thickness)
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    left = min(max(x1, 0), max(picture.shape[1] - width, 0))
    # Above the box, or inside it where there is no room.
    bottom = y1 if y1 >= height + baseline else min(y1 + height + baseline, picture.shape[0])
    cv2.rectangle(
        picture, (left, bottom - height - baseline), (left + width, bottom), color, cv2.FILLED)
    is_light = np.dot(color, (0.114, 0.587, 0.299)) > 140
    cv2.putText(picture, text, (left, bottom - baseline // 2 - 1), _FONT, scale,
                (0, 0, 0) if is_light else (255, 255, 255), max(1, thickness // 2), cv2.LINE_AA)
