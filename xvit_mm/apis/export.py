"""Models as files for any batch and image size, checked by running them: ONNX and torch.export."""
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.files import check_writable
from xvit_mm.utils.images import image_channels

from .build import build_model
from .export_formats import (ExportError, Run, check_packages, open_onnx, open_program, write_onnx,
                             write_program)
from .export_parts import PARTS, part_of
from .inference import classes_of, load_weights

SIZE = (224, 256)  # (height, width) that the exporter sees
# Batch, height and width of the checks, none of which the exporter sees.
CHECKS = ((1, 192, 256), (3, 256, 224), (1, 225, 290))
TOLERANCE, FP16_TOLERANCE, INT8_TOLERANCE = 1e-3, 1e-2, 0.1  # of the largest value of an output
MIN_SIDE = 32
SUFFIXES = ('.onnx', '.pt2')


@dataclass(frozen=True)
class Deviation:
    """How far an output in ONNX Runtime is from the model's, at one shape of the images.

    absolute: the largest difference. relative: the same, divided by the model's largest value.
    """

    shape: tuple[int, ...]
    output: str
    absolute: float
    relative: float

    def __str__(self) -> str:
        shape = ' x '.join(map(str, self.shape))
        return (f'images {shape}: {self.output} deviates by {self.absolute:.1e} '
                f'({self.relative:.1e} of its largest value)')


def export_model(
    cfg: Config,
    checkpoint: str | Path | None,
    path: str | Path,
    *,
    part: str = 'all',
    size: tuple[int, int] = SIZE,
    opset: int | None = None,
    dynamo: bool = False,
    int8: bool = False,
    fp16: bool = False,
) -> list[Deviation]:
    """Write a model, or a part of it, as an ONNX file or a `torch.export` program, and check it.

    The input `images` [batch, 3, height, width] is normalised as the config's `data_preprocessor`
    does it; mean, standard deviation, order of channels and names of classes are in the file's
    metadata. Batch, height and width are free.

    Args:
        cfg: a config of mmdet, mmseg or mmpretrain.
        checkpoint: as `Predictor` takes it; None for random weights.
        path: the file to write, `.onnx` or `.pt2`; it appears when the check has passed.
        part: `backbone`: its maps; `raw`: what the heads say, before any decoding; `all`: scores of
            a classifier, logits of a segmentor at the size of the images, boxes and scores before
            NMS of RetinaNet and YOLOv3.
        size: (height, width) of the image that the exporter sees.
        opset: version of ONNX's operators, default 17, or 18 with `dynamo`.
        dynamo: use torch's new exporter to ONNX instead of the one that traces.
        int8: weights of linear layers in 8 bits, in an ONNX file.
        fp16: weights and maps in 16 bits, in an ONNX file; input and outputs stay in 32.

    Returns:
        the deviation of each output, at three sizes and two batches that the exporter did not see.

    Raises:
        ConfigError: the config's model has no such part, or a package is missing.
        CheckpointError: the weights do not fit the model.
        ExportError: torch's exporter cannot do it, or an output deviates by more than 0.1 % of its
            largest value, 1 % with `fp16`, 10 % with `int8`.
    """
    path = Path(path)
    _check_arguments(path, part, size, opset, dynamo, int8, fp16)
    model = build_model(cfg)
    meta = load_weights(model, checkpoint, cfg) if checkpoint else {}
    module, names = part_of(model.eval(), part)
    if fp16 and 'boxes' in names:
        raise ConfigError('--fp16: 16 bits are too few for the coordinates of boxes, which would be '
                          'off by pixels. Choose --part raw, and decode them in 32 bits')
    with _appearing(path) as partial:
        given = dict(size=size, notes=_notes(cfg, meta, part))
        if path.suffix == '.pt2':
            write_program(module.eval(), names, partial, **given)
        else:
            write_onnx(module.eval(), names, partial, **given, opset=opset, dynamo=dynamo,
                       int8=int8, fp16=fp16)
        run = (open_program if path.suffix == '.pt2' else open_onnx)(partial)
        deviations = list(compare(module, run, names, _check_shapes(cfg, part)))
        tolerance = INT8_TOLERANCE if int8 else FP16_TOLERANCE if fp16 else TOLERANCE
        # Each on its own: max() would pass over a NaN.
        if wrong := [d for d in deviations if not d.relative <= tolerance]:
            raise ExportError(f'{path} is not written, it would be wrong: {wrong[0]}')
    return deviations


@torch.no_grad()
def compare(
    module: nn.Module, run: Run, names: Sequence[str], shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Deviation]:
    """Run an exported file and its module on random images of some shapes."""
    for batch, height, width in shapes:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(
            batch, image_channels(module), height, width, generator=generator)
        for name, result, expected in zip(names, run(images), module(images)):
            if result.shape != expected.shape:
                raise ExportError(
                    f'{name} has the shape {tuple(result.shape)} in the file and '
                    f'{tuple(expected.shape)} in the model, for images {tuple(images.shape)}')
            absolute = (result - expected).abs().max().item()
            largest = expected.abs().max().item()
            yield Deviation(tuple(images.shape), name, absolute, absolute / (largest or 1.))


def _check_arguments(
    path: Path,
    part: str,
    size: tuple[int, int],
    opset: int | None,
    dynamo: bool,
    int8: bool,
    fp16: bool,
) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f'--out {str(path)!r}: the name must end in {" or ".join(SUFFIXES)}')
    if path.is_dir():
        raise ConfigError(f'--out {str(path)!r} is a folder: give the name of a file')
    if min(size) < MIN_SIDE:
        raise ConfigError(f'--size {size[0]} {size[1]}: give sides of at least {MIN_SIDE} pixels')
    if path.suffix == '.pt2' and (opset or dynamo or int8 or fp16):
        raise ConfigError(
            f'--out {str(path)!r}: --opset, --dynamo, --int8 and --fp16 are for .onnx files')
    if int8 and fp16:
        raise ConfigError('--int8 and --fp16: choose one of them')
    check_packages(path.suffix, dynamo)
    if part not in PARTS:
        raise ConfigError(f'--part {part!r}: choose from {", ".join(PARTS)}')
    check_writable(path.parent, '--out')


def _check_shapes(cfg: Config, part: str) -> list[tuple[int, int, int]]:
    """The shapes to check a file at; some necks need the sizes that the config pads images to."""
    divisor = 1 if part == 'backbone' else _preprocessor(cfg).get('pad_size_divisor') or 1
    return [(batch, *(-(-side // divisor) * divisor for side in sides)) for batch, *sides in CHECKS]


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, unless there was an error."""
    partial = path.with_name(f'.partial_{path.name}')
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _notes(cfg: Config, meta: Mapping[str, Any], part: str) -> dict[str, str]:
    """What the user of a file must know."""
    preprocessor = _preprocessor(cfg)
    is_rgb = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    return {
        'mean': str(list(preprocessor.get('mean') or ())),
        'std': str(list(preprocessor.get('std') or ())),
        'channels': 'RGB' if is_rgb else 'BGR',
        'classes': '\n'.join(classes_of(cfg, meta)[0]) if part != 'backbone' else '',
    }


def _preprocessor(cfg: Config) -> dict[str, Any]:
    return {**(cfg.get('data_preprocessor') or {}), **(cfg.model.get('data_preprocessor') or {})}
