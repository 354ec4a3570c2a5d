"""Moving tokens from one grid to another."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import sizes_are_symbolic


def resample_tokens(
    tokens: Tensor, source: tuple[int, int], target: tuple[int, int], *, mode: str
) -> Tensor:
    """Interpolate patch tokens; the class token in front of them stays as it is.

    tokens [B, 1 + h * w, C] on the grid `source` = (h, w) to [B, 1 + h' * w', C] on `target`, both
    grids spanning the same area. mode: `bilinear` or `bicubic`.
    """
    # A traced model interpolates always: for images of another size it may have to.
    if not sizes_are_symbolic() and source == target:
        return tokens
    patches = tokens[:, 1:].transpose(1, 2)
    # Not unflatten, whose sizes would be constants of an ONNX model.
    patches = patches.reshape(*patches.shape[:2], *source)
    patches = F.interpolate(patches, size=target, mode=mode, align_corners=False)
    return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
