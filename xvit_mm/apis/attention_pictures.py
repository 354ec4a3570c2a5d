"""Pictures of what the backbone of a model attends to, for image files."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from xvit_mm.models.backbones import CrossFormer
from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.files import check_writable
from xvit_mm.visualization.attention import attention_maps, receptive_fields
from xvit_mm.visualization.heat_maps import write_heat_maps

from .build import build_model
from .inference import TestPipeline, checked_device
from .token_pictures import load_weights, read_pictures, write_token_pictures

WAYS = ('attention', 'receptive-field')


def write_attention_pictures(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    folder: str | Path,
    *,
    ways: Sequence[str] = WAYS,
    pixel: tuple[float, float] | None = None,
    columns: int = 4,
    device: str | None = None,
) -> list[Path]:
    """Draw the attention of a model's backbone, and its effective receptive field, over images.

    A picture is `{image}_{way}.png`: the image, and a panel for each map of `attention_maps` or
    `receptive_fields`. Models with visual tokens get the pictures of `write_token_pictures`
    instead of the first. Images go through the config's test pipeline.

    Args:
        cfg: a config of mmdet, mmseg or mmpretrain.
        checkpoint: a path, an address or a name; weights of the backbone are enough.
        images: files.
        folder: where to write.
        ways: `attention`, `receptive-field` or both.
        pixel: (x, y) of the query in each image, in its own pixels; default the centre of what the
            test pipeline keeps of the image.
        columns: panels in a row.
        device: as in torch, default the best one there is.

    Raises:
        ConfigError: the backbone has no attention to draw, an image cannot be read, names collide,
            or the pixel lies outside an image or in what the test pipeline cuts off.
        CheckpointError: the checkpoint does not fit.
        FolderError: the folder cannot be written.
    """
    checked_device(device)
    pictures = read_pictures(images)
    check_writable(folder, '--out')
    pipeline = TestPipeline(cfg)
    queries = {path: _query(pixel, picture.shape[:2], pipeline, path)
               for path, picture in pictures.items()}
    model = build_model(cfg)
    written: list[Path] = []
    if 'attention' in ways and _has_tokens(model):
        written += write_token_pictures(cfg, checkpoint, images, folder, columns=columns, device=device)
        ways = [way for way in ways if way != 'attention']
    if not ways:
        return written
    print_log(load_weights(model, checkpoint))
    model.to(checked_device(device)).eval()
    kind = type(model.backbone).__name__
    for path, picture in pictures.items():
        query = queries[path]
        inputs, shown = _prepare(model, pipeline, picture)
        for way in ways:
            maps = _compute_maps(model.backbone, way, inputs, shown.shape[:2], query)
            has_query = way != 'attention' or isinstance(model.backbone, CrossFormer)
            written.append(Path(folder) / f'{path.stem}_{way.replace("-", "_")}.png')
            write_heat_maps(
                written[-1], shown, maps, columns=columns, pixel=query if has_query else None,
                title=f'{kind}, {way.replace("-", " ")}: {path.name}')
    return written


def _has_tokens(model: nn.Module) -> bool:
    parts = (getattr(model, name, None) for name in ('backbone', 'neck'))
    return any(hasattr(part, 'token_attention') for part in parts)


def _prepare(
    model: nn.Module, pipeline: TestPipeline, picture: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """A picture as the model gets it, [1, 3, H', W'], and as it is shown, [H, W, 3] in RGB.

    The first may be padded on the right and at the bottom.
    """
    packed = pipeline(picture)
    inputs = model.data_preprocessor(
        {key: [value] for key, value in packed.items()}, False)['inputs']
    shown = packed['inputs'].permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)
    return inputs, np.ascontiguousarray(shown if pipeline.is_rgb else shown[..., ::-1])


def _compute_maps(
    backbone: nn.Module,
    way: str,
    inputs: Tensor,
    size: tuple[int, int],
    query: tuple[float, float],
) -> dict[str, Tensor]:
    """The maps of a way, enlarged to the picture, [height, width] as in `size`.

    query: (x, y) as shares of the picture.
    """
    height, width = size
    at = query[0] * width / inputs.shape[3], query[1] * height / inputs.shape[2]
    compute = attention_maps if way == 'attention' else receptive_fields
    try:
        maps = compute(backbone, inputs, at)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'{way} cannot be drawn: {error}') from error
    return {name: F.interpolate(values[None, None], inputs.shape[2:])[0, 0, :height, :width]
            for name, values in maps.items()}


def _query(
    pixel: tuple[float, float] | None,
    size: tuple[int, int],
    pipeline: TestPipeline,
    path: Path,
) -> tuple[float, float]:
    """Where a pixel of an image of (height, width) lies after the pipeline, in shares of x and y."""
    if pixel is None:
        return 0.5, 0.5
    height, width = size
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ConfigError(
            f'--pixel {pixel[0]:g} {pixel[1]:g}: {path} has {width} x {height} pixels')
    axes = _follow_axes(size, pipeline)
    places = [(at - start) / step for at, (start, step, _) in zip(pixel, axes)]
    # Half a pixel of tolerance: an image that is made smaller loses a part of its border.
    if not all(-1 <= place <= number for place, (_, _, number) in zip(places, axes)):
        (left, right), (top, bottom) = (
            sorted((start, start + step * (number - 1))) for start, step, number in axes)
        raise ConfigError(
            f'--pixel {pixel[0]:g} {pixel[1]:g}: the test pipeline cuts it off; it keeps x from '
            f'{max(left, 0):.0f} to {right:.0f} and y from {max(top, 0):.0f} to {bottom:.0f}')
    x, y = (float(np.clip((place + 0.5) / number, 0, 1))
            for place, (_, _, number) in zip(places, axes))
    return x, y


def _follow_axes(size: tuple[int, int], pipeline: TestPipeline) -> list[tuple[float, float, int]]:
    """(start, step, number) of x and y: after the pipeline pixel i of `number` shows start + step * i.

    Found by sending an image of (height, width) whose values are its coordinates through it.
    """
    height, width = size
    ramps = np.full((height, width, 3), 255, np.uint8)
    ramps[..., 0] = np.rint(np.linspace(0, 255, width))
    ramps[..., 2] = np.rint(np.linspace(0, 255, height))[:, None]
    changed = pipeline(ramps)['inputs'].numpy()
    xs, marks, ys = changed[::-1] if pipeline.is_rgb else changed
    rows, columns = np.nonzero(marks > 254)  # of the image, without padding
    axes = []
    for values, places, side, number in ((xs, columns, width, marks.shape[1]),
                                         (ys, rows, height, marks.shape[0])):
        # A line through all pixels, since a ramp has no more than 256 values.
        step, start = np.polyfit(places, values[rows, columns] * ((side - 1) / 255), 1)
        axes.append((start, step if side > 1 else 1., number))
    return axes
