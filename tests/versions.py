"""What the tests use and some supported versions of torch lack, each difference in one place."""
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.utils import _pytree

TORCH = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])


def needs_torch(minor: int, what: str) -> pytest.MarkDecorator:
    """Skip a test of what came with torch 2.`minor`."""
    return pytest.mark.skipif(TORCH < (2, minor), reason=f'torch {TORCH[0]}.{TORCH[1]} has no '
                              f'{what}; that came with 2.{minor}')


def unfused_attention() -> AbstractContextManager:
    """Attention as separate products of matrices, which counters of operations see."""
    if TORCH < (2, 3):
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(SDPBackend.MATH)


def tree_leaves(tree: Any) -> list[Any]:
    """Leaves of nested lists, tuples and dicts."""
    return _pytree.tree_flatten(tree)[0]
