"""Read image files as mmcv does, with clear errors for broken ones."""
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from PIL import Image
from PIL.ExifTags import Base

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def read_image(path: str | Path, **options: Any) -> np.ndarray:
    """`mmcv.imread` with these options: `[H, W, 3]`, or `[H, W]` for an index image.

    Raises:
        ValueError: the file is not there, damaged, or not an image.
    """
    try:
        image = mmcv.imread(path, **options)
    except Exception as error:
        # Every decoder has errors of its own for a broken file, which say little.
        raise _unreadable(path) from error
    if image is None:
        raise _unreadable(path)
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height as mmcv reads the image, from the file header where possible.

    Raises:
        ValueError: the file is not there, damaged, or not an image.
    """
    try:
        with Image.open(path) as image:
            size = image.size
            # Without this condition, Pillow would decode a PNG in search of EXIF data.
            orientation = image.getexif().get(Base.Orientation) if 'exif' in image.info else None
    except Exception as error:
        raise _unreadable(path) from error
    if orientation in (None, 1):
        return size
    # For which formats the orientation counts depends on OpenCV.
    height, width = read_image(path).shape[:2]
    return width, height


def _unreadable(path: str | Path) -> ValueError:
    if Path(path).is_dir():
        return ValueError(f'{path} is a folder, not an image file')
    return ValueError(
        f'{path} is damaged, or not an image' if Path(path).is_file() else f'{path} does not exist')
