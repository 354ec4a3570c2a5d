"""Pictures of what the backbone of a model attends to, for image files."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log

from xvit_mm.models.backbones import CrossFormer
from xvit_mm.utils.config import ConfigError
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
        pixel: (x, y) of the query in each image, in its own pixels; default the centre.
        columns: panels in a row.
        device: as in torch, default the best one there is.

    Raises:
        ConfigError: the backbone has no attention to draw, an image cannot be read, names collide,
            or the pixel lies outside an image.
        CheckpointError: the checkpoint does not fit.
    """
    pictures = read_pictures(images)
    for path, picture in pictures.items():
        _shares(pixel, picture, path)
    pipeline = TestPipeline(cfg)
    model = build_model(cfg)
    has_tokens = any(hasattr(getattr(model, part, None), 'token_attention')
                     for part in ('backbone', 'neck'))
    written: list[Path] = []
    if 'attention' in ways and has_tokens:
        written += write_token_pictures(cfg, checkpoint, images, folder, columns=columns)
        ways = [way for way in ways if way != 'attention']
    if not ways:
        return written
    print_log(load_weights(model, checkpoint))
    model.to(checked_device(device)).eval()
    for path, picture in pictures.items():
        shares = _shares(pixel, picture, path)
        packed = pipeline(picture)
        inputs = model.data_preprocessor(
            {key: [value] for key, value in packed.items()}, False)['inputs']
        shown = packed['inputs'].permute(1, 2, 0).numpy().clip(0, 255).astype(np.uint8)
        shown = shown if pipeline.is_rgb else shown[..., ::-1]
        # The batch may be padded on the right and at the bottom.
        at = (shares[0] * shown.shape[1] / inputs.shape[3],
              shares[1] * shown.shape[0] / inputs.shape[2])
        for way in ways:
            try:
                maps = (attention_maps if way == 'attention' else receptive_fields)(
                    model.backbone, inputs, at)
            except (TypeError, ValueError) as error:
                raise ConfigError(f'{way} cannot be drawn: {error}') from error
            maps = {
                name: F.interpolate(values[None, None], inputs.shape[2:])[0, 0, :shown.shape[0],
                                                                          :shown.shape[1]]
                for name, values in maps.items()}
            written.append(Path(folder) / f'{path.stem}_{way.replace("-", "_")}.png')
            has_query = way != 'attention' or isinstance(model.backbone, CrossFormer)
            write_heat_maps(
                written[-1], np.ascontiguousarray(shown), maps, columns=columns,
                pixel=shares if has_query else None,
                title=f'{type(model.backbone).__name__}, {way.replace("-", " ")}: {path.name}')
    return written


def _shares(
    pixel: tuple[float, float] | None, picture: np.ndarray, path: Path
) -> tuple[float, float]:
    """A pixel as shares of width and height."""
    if pixel is None:
        return 0.5, 0.5
    height, width = picture.shape[:2]
    if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ConfigError(
            f'--pixel {pixel[0]:g} {pixel[1]:g}: {path} has {width} x {height} pixels')
    return (pixel[0] + 0.5) / width, (pixel[1] + 0.5) / height
