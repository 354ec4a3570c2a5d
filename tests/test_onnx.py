"""ONNX: torch's exporter (the one that MMDeploy calls), run with ONNX Runtime."""
from pathlib import Path

import pytest
import torch

from small_models import SMALL
from versions import TRACING_EXPORTER
from xvit_mm.registry import MODELS

pytest.importorskip('onnx', reason='pip install onnx onnxruntime')
onnxruntime = pytest.importorskip('onnxruntime', reason='pip install onnx onnxruntime')

pytestmark = [
    pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
    pytest.mark.filterwarnings('ignore::UserWarning'),
]


def exported(name: str, path: Path, **options):
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name])).eval()
    image = torch.randn(1, 3, 64, 96)
    torch.onnx.export(
        backbone, (image,), str(path), opset_version=17, input_names=['image'],
        **TRACING_EXPORTER, **options)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return backbone, session, image


def assert_same(backbone, session, images: torch.Tensor) -> None:
    with torch.no_grad():
        expected = backbone(images)
    results = session.run(None, {'image': images.numpy()})
    assert len(results) == len(expected) == 4
    for result, wanted in zip(results, expected):
        torch.testing.assert_close(torch.from_numpy(result), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', sorted(SMALL))
def test_any_batch_and_size_in_onnx_runtime(name: str, tmp_path: Path):
    """(1, 3, 50, 97) has maps that are one group of CrossFormer, and sides that nothing divides."""
    backbone, session, image = exported(
        name, tmp_path / 'model.onnx',
        dynamic_axes={'image': {0: 'batch', 2: 'height', 3: 'width'}})
    for shape in image.shape, (2, 3, 64, 64), (1, 3, 50, 97), (2, 3, 160, 33):
        assert_same(backbone, session, torch.randn(shape))
