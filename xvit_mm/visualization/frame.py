"""Put captions above and a legend below a picture."""
from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

Color = tuple[int, int, int]  # RGB

_ROW_HEIGHT = 28  # px
_BASELINE = 20  # px below the top of a row
_MARGIN = 8  # px
_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.6)
_BLACK = (0, 0, 0)


def add_captions(picture: np.ndarray, captions: Iterable[str], panel_width: int) -> np.ndarray:
    """Put a row with one caption for each panel above `[H, W, 3]` BGR."""
    row = _blank_row(picture.shape[1])
    for index, caption in enumerate(captions):
        _write(row, caption, index * panel_width + _MARGIN)
    return np.concatenate([row, picture])


def add_legend(picture: np.ndarray, entries: Iterable[tuple[str, Color]]) -> np.ndarray:
    """Put rows with a patch of colour and a name for each entry below `[H, W, 3]` BGR."""
    rows: list[np.ndarray] = []
    width = picture.shape[1]
    x = width
    for name, color in entries:
        entry_width = _ROW_HEIGHT + _text_width(name) + 2 * _MARGIN
        if x + entry_width > width:
            rows.append(_blank_row(width))
            x = _MARGIN
        patch = rows[-1][6:-6, x:x + _ROW_HEIGHT - 8]
        patch[:] = color[::-1]
        _write(rows[-1], name, x + _ROW_HEIGHT)
        x += entry_width
    return np.concatenate([picture, *rows])


def _blank_row(width: int) -> np.ndarray:
    return np.full((_ROW_HEIGHT, width, 3), 255, np.uint8)


def _write(row: np.ndarray, text: str, x: int) -> None:
    cv2.putText(row, text, (x, _BASELINE), *_FONT, _BLACK, 1, cv2.LINE_AA)


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, *_FONT, 1)[0][0]
