"""Moving images, maps and tokens from one grid to another."""
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import is_compiling, is_exporting, opaque_to_compile, sizes_are_symbolic

# The faster ones on a CPU: bilinear for many channels, bicubic for those of an image.
_LAYOUTS = {'bilinear': torch.channels_last, 'bicubic': torch.contiguous_format}


def interpolate(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """[B, C, H, W] to [B, C, *size], both over the same area; mode: `bilinear` or `bicubic`."""
    compiles = is_compiling() and not is_exporting()
    if compiles and not torch.is_grad_enabled() and x.device.type == 'cpu':
        # Inductor writes out the formula, which takes 3 (bilinear) to 10 times (bicubic) as long.
        return _interpolated(x, *size, mode)
    return F.interpolate(x, size=size, mode=mode, align_corners=False)


def _interpolated(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    layout = _LAYOUTS[mode]
    if x.shape[2:] == (height, width):
        return x.clone(memory_format=layout)
    x = x.contiguous(memory_format=layout)
    x = F.interpolate(x, size=(height, width), mode=mode, align_corners=False)
    return x.contiguous(memory_format=layout)


def _interpolated_shape(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    return torch.empty(x.shape[0], x.shape[1], height, width, dtype=x.dtype, device=x.device,
                       memory_format=_LAYOUTS[mode])


_interpolated = opaque_to_compile(_interpolated, _interpolated_shape)


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
    patches = interpolate(patches, target, mode)
    return torch.cat([tokens[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
