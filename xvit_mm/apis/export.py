"""Models as ONNX files for any batch and image size, checked in ONNX Runtime."""
import importlib.util
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.onnx.errors
from mmengine.config import Config
from torch import nn

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.files import check_writable

from .build import build_model
from .export_parts import PARTS, part_of
from .inference import classes_of, load_weights

SIZE = (224, 256)  # (height, width) that the exporter sees, with a batch of one
# Batch, height and width of the checks, none of which the exporter sees.
CHECKS = ((2, 192, 256), (3, 256, 224), (2, 225, 290))
MIN_SIDE = 128  # pixels; below it torch.export would need other graphs, for maps of a few tokens
TOLERANCE = 1e-3  # of the largest value of an output


# The new exporter has its own since torch 2.5.
_EXPORTER_ERRORS = tuple(
    module.OnnxExporterError for module in (torch.onnx.errors, torch.onnx)
    if hasattr(module, 'OnnxExporterError'))


class ExportError(ConfigError):
    """A model that torch cannot export, or a file that does not compute what the model does."""


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


def export_onnx(
    cfg: Config,
    checkpoint: str | Path | None,
    path: str | Path,
    *,
    part: str = 'all',
    size: tuple[int, int] = SIZE,
    opset: int | None = None,
    dynamo: bool = False,
) -> list[Deviation]:
    """Write a model, or a part of it, as an ONNX file and check it in ONNX Runtime.

    The input `images` [batch, 3, height, width] is normalised as the config's `data_preprocessor`
    does it; mean, standard deviation, order of channels and names of classes are in the file's
    metadata. Batch, height and width are free.

    Args:
        cfg: a config of mmdet, mmseg or mmpretrain.
        checkpoint: as `Predictor` takes it; None for random weights.
        path: the file to write; it appears when the check has passed.
        part: `backbone`: its maps; `raw`: what the heads say, before any decoding; `all`: scores of
            a classifier, logits of a segmentor at the size of the images, boxes and scores before
            NMS of RetinaNet and YOLOv3.
        size: (height, width) of the image that the exporter sees.
        opset: version of ONNX's operators, default 17, or 18 with `dynamo`.
        dynamo: use torch's new exporter instead of the one that traces; for sides of 128 pixels
            and more.

    Returns:
        the deviation of each output, at three sizes and two batches that the exporter did not see.

    Raises:
        ConfigError: the config's model has no such part, or a package is missing.
        CheckpointError: the weights do not fit the model.
        ExportError: torch's exporter cannot do it, or an output deviates by more than 0.1 % of its
            largest value.
    """
    _check_packages(dynamo)
    path = Path(path)
    if path.suffix != '.onnx':
        raise ConfigError(f'--out {str(path)!r}: the name must end in .onnx')
    if part not in PARTS:
        raise ConfigError(f'--part {part!r}: choose from {", ".join(PARTS)}')
    check_writable(path.parent, '--out')
    model = build_model(cfg)
    meta = load_weights(model, checkpoint, cfg) if checkpoint else {}
    module, names = part_of(model.eval(), part)
    partial = path.with_name(f'.partial_{path.name}')
    try:
        try:
            _export(module.eval(), names, partial, size, opset or (18 if dynamo else 17), dynamo)
        except _EXPORTER_ERRORS as error:
            reason = ' '.join(str(error).split())[:300]
            raise ExportError(f'torch {torch.__version__} cannot export this: {reason}') from error
        _note(partial, cfg, meta, part)
        # Some necks need the sizes that the config pads images to.
        divisor = 1 if part == 'backbone' else _preprocessor(cfg).get('pad_size_divisor') or 1
        shapes = [(batch, *(-(-side // divisor) * divisor for side in sides))
                  for batch, *sides in CHECKS]
        deviations = list(compare(module, partial, shapes))
        worst = max(deviations, key=lambda deviation: deviation.relative)
        if not worst.relative <= TOLERANCE:
            raise ExportError(f'{path} is not written, it would be wrong: {worst}')
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return deviations


@torch.no_grad()
def compare(
    module: nn.Module, path: Path, shapes: Sequence[tuple[int, int, int]]
) -> Iterator[Deviation]:
    """Run a file in ONNX Runtime and its module in torch, on random images of some shapes."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings of shapes that it did not expect
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    for batch, height, width in shapes:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, height, width, generator=generator)
        results = session.run(None, {'images': images.numpy()})
        for node, result, expected in zip(session.get_outputs(), results, module(images)):
            if tuple(result.shape) != tuple(expected.shape):
                raise ExportError(
                    f'{node.name} has the shape {tuple(result.shape)} in ONNX Runtime and '
                    f'{tuple(expected.shape)} in torch, for images {tuple(images.shape)}')
            absolute = (torch.from_numpy(result) - expected).abs().max().item()
            largest = expected.abs().max().item()
            yield Deviation(tuple(images.shape), node.name, absolute, absolute / (largest or 1.))


def _export(
    module: nn.Module, names: Sequence[str], path: Path, size: tuple[int, int], opset: int,
    dynamo: bool,
) -> None:
    images = torch.randn(1, 3, *size)
    options: dict[str, Any] = dict(
        opset_version=opset, input_names=['images'], output_names=list(names), verbose=False)
    if dynamo:
        # Batch one would be taken for a constant.
        images = torch.randn(2, 3, *size)
        dim = torch.export.Dim
        options |= dict(dynamo=True, external_data=False, dynamic_shapes=(
            {0: dim('batch'), 2: dim('height', min=MIN_SIDE), 3: dim('width', min=MIN_SIDE)},))
    else:
        options['dynamic_axes'] = {'images': {0: 'batch', 2: 'height', 3: 'width'}} | {
            name: {0: 'batch'} for name in names}
        # Before torch 2.5 there is no other way, and no such argument.
        if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
            options['dynamo'] = False
    with warnings.catch_warnings():
        # The tracer warns of every comparison, and of its own age.
        warnings.simplefilter('ignore')
        torch.onnx.export(module, (images,), str(path), **options)


def _note(path: Path, cfg: Config, meta: Mapping[str, Any], part: str) -> None:
    """Write into a file what its user must know."""
    import onnx
    preprocessor = _preprocessor(cfg)
    is_rgb = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {
        'mean': str(list(preprocessor.get('mean') or ())),
        'std': str(list(preprocessor.get('std') or ())),
        'channels': 'RGB' if is_rgb else 'BGR',
        'classes': '\n'.join(classes_of(cfg, meta)[0]) if part != 'backbone' else '',
    })
    onnx.save(model, str(path))


def _preprocessor(cfg: Config) -> dict[str, Any]:
    return {**(cfg.get('data_preprocessor') or {}), **(cfg.model.get('data_preprocessor') or {})}


def _check_packages(dynamo: bool) -> None:
    needed = ['onnx', 'onnxruntime'] + ['onnxscript'] * dynamo
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'exporting needs {", ".join(missing)}: pip install {" ".join(missing)} '
                          '(or the extra: pip install "xvit_mm[export]")')
    if dynamo and 'dynamo' not in inspect.signature(torch.onnx.export).parameters:
        raise ConfigError(f'--dynamo needs torch 2.5 or newer, and this is {torch.__version__}')
