"""What the tests use and torch 2.1, the oldest one supported, lacks: one place for each."""
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.utils import _pytree

TORCH = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])

# For `torch.onnx.export`: the exporter that traces, which newer versions have to be asked for.
TRACING_EXPORTER = {'dynamo': False} if TORCH >= (2, 5) else {}


def not_in_torch_2_1(what: str) -> pytest.MarkDecorator:
    """Skip a test of what came later."""
    return pytest.mark.skipif(TORCH < (2, 2), reason=f'torch 2.1 has no {what}')


half_on_a_cpu = not_in_torch_2_1('matrix products in float16 on a CPU')
HALF = pytest.param(torch.float16, marks=half_on_a_cpu, id='float16')


def unfused_attention() -> AbstractContextManager:
    """Attention as separate products of matrices, which counters of operations see."""
    if TORCH < (2, 3):
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(SDPBackend.MATH)


def tree_leaves(tree: Any) -> list[Any]:
    """Leaves of nested lists, tuples and dicts."""
    return _pytree.tree_flatten(tree)[0]
