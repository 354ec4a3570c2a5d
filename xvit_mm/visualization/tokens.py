"""Pictures of what a model looks at."""
import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def draw_tokens(
    image: np.ndarray, attention: Tensor, *, columns: int = 4, alpha: float = 0.5
) -> np.ndarray:
    """Return the spatial attention of each visual token, as in the figures of the VT paper.

    image [H, W, 3] of uint8 in RGB and attention [L, h, w], one image of what
    `VTResNet.token_attention` gives, to one picture [rows * H, columns * W, 3] with the tokens row
    by row. Colours go from blue to red between the least and the greatest weight of a token;
    `alpha` is their share in the mixture with the image.

    Raises:
        ValueError: image or attention of another shape or kind.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f'image of shape {image.shape} and {image.dtype}: give [H, W, 3] of uint8')
    if attention.ndim != 3:
        raise ValueError(
            f'attention of shape {tuple(attention.shape)}: give [L, h, w], for instance '
            '`backbone.token_attention(images)[-1][0]`')
    # Only here: it loads matplotlib.
    from mmengine.visualization import Visualizer
    enlarged = F.interpolate(
        attention[None].float(), image.shape[:2], mode='bilinear', align_corners=False)[0]
    columns = min(columns, len(enlarged))
    rows = math.ceil(len(enlarged) / columns)
    height, width = image.shape[:2]
    picture = np.zeros((rows * height, columns * width, 3), np.uint8)
    for i, token in enumerate(enlarged):
        top, left = i // columns * height, i % columns * width
        picture[top:top + height, left:left + width] = Visualizer.draw_featmap(
            token[None], image, channel_reduction='squeeze_mean', alpha=alpha)
    return picture
