"""Pictures of samples with their labels."""
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np

from xvit_mm.visualization.frame import Color, add_captions, add_legend


def enlargement(height: int, width: int, short_side: int = 800) -> float:
    """Return the factor that enlarges an image to a short side at which labels can be read."""
    return max(1., short_side / min(height, width))


def enlarged(image: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` at a size at which a caption can be read."""
    factor = enlargement(*image.shape[:2], short_side=320)
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)


def write_panels(
    path: Path,
    panels: Sequence[np.ndarray],
    captions: Sequence[str],
    legend: Sequence[tuple[str, Color]] = (),
) -> None:
    """Write images `[H, W, 3]` RGB of one size side by side, with captions and a legend."""
    picture = np.concatenate(panels, axis=1)[..., ::-1]
    picture = add_captions(np.ascontiguousarray(picture), captions, panels[0].shape[1])
    # Unlike cv2.imwrite, it raises an error where it cannot write.
    mmcv.imwrite(add_legend(picture, legend), path)
