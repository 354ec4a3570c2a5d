"""Where the visual tokens of a model look, drawn over images."""
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from xvit_mm.checkpoints import CheckpointError, find_state_dict, load_official, read_checkpoint
from xvit_mm.datasets.images import read_image
from xvit_mm.utils.config import ConfigError
from xvit_mm.visualization.heat_maps import write_heat_maps

from .build import build_model
from .inference import TestPipeline, checked_device

Attentions = dict[str, Tensor]


def write_token_pictures(
    cfg: Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    folder: str | Path,
    *,
    columns: int = 4,
    device: str | None = None,
) -> list[Path]:
    """Draw the spatial attention of every token of a model, one picture for each place.

    A place is a VT module of the backbone, `vt0`, or a level of the neck in one of its layers,
    `neck0_level2`; its picture is `{image}_{place}.png`, the image and a panel for each token.
    Images go through the config's test pipeline, so that the model sees the scale it was trained
    for.

    Raises:
        ConfigError: the model has no visual tokens, an image cannot be read, or names collide.
        CheckpointError: the checkpoint does not fit.
    """
    pictures = read_pictures(images)
    model = build_model(cfg)
    _check_has_tokens(model)
    print_log(load_weights(model, checkpoint))
    model.to(checked_device(device)).eval()
    written: list[Path] = []
    for path, picture in pictures.items():
        shown, attentions = look(model, cfg, picture)
        for place, attention in attentions.items():
            written.append(Path(folder) / f'{path.stem}_{place}.png')
            maps = {f'token {i}': token for i, token in enumerate(attention, start=1)}
            write_heat_maps(written[-1], shown, maps, columns=columns,
                            title=f'Visual tokens of {place}: {path.name}')
    return written


def load_weights(model: nn.Module, checkpoint: str | Path) -> str:
    """Load a checkpoint, official or your own; return a report.

    Raises:
        CheckpointError: unreadable, or it does not fit.
    """
    try:
        return str(load_official(model, checkpoint))
    except TypeError:
        # Not our backbone, only our neck: such files come from training runs only.
        state_dict = find_state_dict(read_checkpoint(checkpoint))
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(f'{checkpoint} does not fit this model: {error}') from error
    return f'{type(model).__name__}: {len(state_dict)} of {len(state_dict)} tensors loaded'


@torch.no_grad()
def look(model: nn.Module, cfg: Config, picture: np.ndarray) -> tuple[np.ndarray, Attentions]:
    """The image [H, W, 3] in RGB as the model sees it, and attentions [L, H, W] by place."""
    pipeline = TestPipeline(cfg)
    packed = pipeline(picture)
    shown = packed['inputs'].permute(1, 2, 0).numpy()
    batch = model.data_preprocessor(
        {key: [value] for key, value in packed.items()}, False)['inputs']
    attentions = {
        # The batch may be padded on the right and at the bottom; the picture is not.
        place: F.interpolate(attention, batch.shape[2:], mode='bilinear', align_corners=False)
        [0, :, :shown.shape[0], :shown.shape[1]].cpu()
        for place, attention in _attentions(model, batch)}
    return np.ascontiguousarray(shown if pipeline.is_rgb else shown[..., ::-1]), attentions


def _attentions(model: nn.Module, batch: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every place that has tokens, and its attention [1, L, h, w]."""
    try:
        if hasattr(model.backbone, 'token_attention'):
            for i, attention in enumerate(model.backbone.token_attention(batch)):
                yield f'vt{i}', attention
        if hasattr(getattr(model, 'neck', None), 'token_attention'):
            for i, layer in enumerate(model.neck.token_attention(model.backbone(batch))):
                for level, attention in enumerate(layer):
                    yield f'neck{i}_level{level}', attention
    except ValueError as error:
        raise ConfigError(f'the tokens of this model cannot be drawn: {error}') from error


def _check_has_tokens(model: nn.Module) -> None:
    parts = {name: getattr(model, name, None) for name in ('backbone', 'neck')}
    if not any(hasattr(part, 'token_attention') for part in parts.values()):
        found = ', '.join(f'{name} {type(part).__name__}' for name, part in parts.items() if part)
        raise ConfigError(
            f'this model has no visual tokens to draw ({found or type(model).__name__}): they are '
            'in the backbone xvit_mm.VTResNet and in the neck xvit_mm.VTFPN')


def read_pictures(images: Sequence[str | Path]) -> dict[Path, np.ndarray]:
    """Images [H, W, 3] of uint8 in BGR, by their paths.

    Raises:
        ConfigError: one cannot be read, or two have one name.
    """
    try:
        pictures = {Path(image): read_image(image) for image in images}
    except ValueError as error:
        raise ConfigError(f'image {error}') from None
    if twice := [n for n, count in Counter(p.stem for p in pictures).items() if count > 1]:
        raise ConfigError(
            f'several images are called {", ".join(twice)}, and so would be their pictures: draw '
            'them into different folders')
    return pictures
