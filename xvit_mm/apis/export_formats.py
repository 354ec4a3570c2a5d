"""Formats of exported modules: how a file is written, and how it is run to check it."""
import importlib.util
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.images import image_channels

Size = tuple[int, int]
Run = Callable[[Tensor], Sequence[Tensor]]
NOTES = 'notes.json'  # in a .pt2 file


class ExportError(ConfigError):
    """A model that torch cannot export, or a file that does not compute what the model does."""


def check_packages(suffix: str, dynamo: bool) -> None:
    """Ask for what an exporter needs.

    Raises:
        ConfigError: a package is missing, torch is too old, or the suffix is not known.
    """
    if suffix == '.pt2':
        if not hasattr(torch.compiler, 'is_exporting'):
            raise ConfigError(f'.pt2 files need torch 2.7 or newer, and this is {torch.__version__}')
        return
    needed = ['onnx', 'onnxruntime'] + ['onnxscript'] * dynamo
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'exporting needs {", ".join(missing)}: pip install {" ".join(missing)} '
                          '(or the extra: pip install "xvit_mm[export]")')
    if dynamo and 'dynamo' not in inspect.signature(torch.onnx.export).parameters:
        raise ConfigError(f'--dynamo needs torch 2.5 or newer, and this is {torch.__version__}')


def write_onnx(
    module: nn.Module,
    names: Sequence[str],
    path: Path,
    *,
    size: Size,
    notes: Mapping[str, str],
    opset: int | None = None,
    dynamo: bool = False,
    int8: bool = False,
    fp16: bool = False,
) -> None:
    """Write an ONNX file with free batch, height and width, and notes in its metadata.

    int8: weights of linear layers in 8 bits; ONNX Runtime rounds their inputs as they come.
    fp16: weights and maps in 16 bits, but input and outputs in 32.
    """
    import onnx
    options: dict[str, Any] = dict(
        opset_version=opset or (18 if dynamo else 17), input_names=['images'],
        output_names=list(names), verbose=False)
    if dynamo:
        module = AnySize(module)
        options |= dict(dynamo=True, external_data=False, dynamic_shapes=_dynamic_shapes())
    else:
        options['dynamic_axes'] = {'images': {0: 'batch', 2: 'height', 3: 'width'}} | {
            name: {0: 'batch'} for name in names}
        # Before torch 2.5 there is no other way, and no such argument.
        if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
            options['dynamo'] = False
    with warnings.catch_warnings(), _explained_errors():
        # The tracer warns of every comparison, and of its own age.
        warnings.simplefilter('ignore')
        # The new exporter takes a batch of one for a constant.
        images = torch.randn(2, image_channels(module), *size)
        torch.onnx.export(module, (images,), str(path), **options)
    if int8:
        _quantize(path)
    model = onnx.load(str(path))
    if fp16:
        from onnxruntime.transformers.float16 import convert_float_to_float16
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of numbers that 16 bits round to 0
            model = convert_float_to_float16(model, keep_io_types=True)
    onnx.helper.set_model_props(model, dict(notes))
    onnx.save(model, str(path))


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    logging.getLogger().addFilter(_is_no_advice)
    try:
        quantize_dynamic(str(path), str(path), weight_type=QuantType.QInt8,
                         op_types_to_quantize=['MatMul', 'Gemm'])
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    # Of a preparation that cannot take maps whose size is free.
    return 'pre-processing before quantization' not in record.getMessage()


def open_onnx(path: Path) -> Run:
    """Open a file of `write_onnx` in ONNX Runtime."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings of shapes that it did not expect
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {'images': images.numpy()})]


def write_program(
    module: nn.Module,
    names: Sequence[str],
    path: Path,
    *,
    size: Size,
    notes: Mapping[str, str],
) -> None:
    """Write a program of `torch.export` with free batch, height and width.

    Notes and names of outputs are in its extra file `notes.json`.
    """
    program = export_program(module, size)
    text = json.dumps(dict(notes, outputs=list(names)))
    torch.export.save(program, str(path), extra_files={NOTES: text})


class AnySize(nn.Module):
    """A module of images [B, 3, H, W] to tensors, for `torch.export` with every size.

    Sizes of an input are taken apart from 1, and from each other wherever the exporter compares
    them. Sizes that the program computes itself are not: the images are selected by such ones.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        for axis in (0, 2, 3):
            size = torch.scalar_tensor(images.shape[axis], dtype=torch.int64).item()
            torch._check(size >= 1)
            images = images.index_select(axis, torch.arange(size, device=images.device))
        with _PoolingBySlices():
            return self.module(images)


class _PoolingBySlices(TorchFunctionMode):
    """Has max-pooling of single pixels, with which FPN adds levels, take a map of every size.

    With a stride, `max_pool2d` makes a program for odd or for even maps alone.
    """

    def __torch_function__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (F.max_pool2d, torch.max_pool2d):
            given = dict(zip(('input', 'kernel_size', 'stride', 'padding'), args), **kwargs)
            stride = given.get('stride')
            if given['kernel_size'] == 1 and isinstance(stride, int) and not given.get('padding'):
                return given['input'][..., ::stride, ::stride]
        return function(*args, **kwargs)


@torch.no_grad()
def export_program(module: nn.Module, size: Size) -> Any:
    """`torch.export` of a module of images [B, 3, H, W], for any batch, height and width.

    size: (height, width) of the image that the exporter sees. Returns an ExportedProgram.

    Raises:
        ExportError: the module does what a program for every size cannot do.
    """
    images = torch.randn(2, image_channels(module), *size)
    with warnings.catch_warnings(), _explained_errors():
        warnings.simplefilter('ignore')
        return torch.export.export(AnySize(module), (images,), dynamic_shapes=_dynamic_shapes())


def open_program(path: Path) -> Run:
    """Open a file of `write_program`."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch maps the file and says that it cannot be written
        return torch.export.load(str(path)).module()


def _dynamic_shapes() -> tuple[dict[int, Any]]:
    dim = torch.export.Dim
    return ({0: dim('batch'), 2: dim('height'), 3: dim('width')},)


@contextmanager
def _explained_errors() -> Iterator[None]:
    try:
        yield
    # No exporter has a common class for its errors.
    except Exception as error:
        reason = ' '.join(str(error).split())[:300]
        raise ExportError(f'torch {torch.__version__} cannot export this: {reason}') from error
