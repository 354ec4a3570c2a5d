"""The residual sum with stochastic depth."""
import pytest
import torch
from mmcv.cnn.bricks.drop import drop_path

from xvit_mm.models.layers import DropPath


@pytest.mark.parametrize('shape', [(64, 3), (16, 2, 5), (16, 2, 3, 4), (0, 2, 5)], ids=str)
def test_the_sum_is_that_of_mmcv_with_the_same_numbers(shape):
    x, branch = (torch.randn(shape, requires_grad=True) for _ in range(2))
    grad = torch.randn(shape)
    results = []
    for add in (DropPath(0.3).add, lambda x, branch: x + drop_path(branch, 0.3, training=True)):
        torch.manual_seed(0)
        out = add(x, branch)
        results.append([out, *torch.autograd.grad(out, (x, branch), grad)])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected)
    kept = (results[0][0] != x).flatten(1).any(dim=1)
    assert not len(kept) or 0 < kept.sum() < len(kept)


@pytest.mark.parametrize('layer', [DropPath(0.5).eval(), DropPath(0.)], ids=['eval', 'rate 0'])
def test_nothing_is_dropped(layer):
    x, branch = torch.randn(8, 3), torch.randn(8, 3)
    assert torch.equal(layer.add(x, branch), x + branch)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_branch_in_half_precision_is_added_to_single_precision(dtype):
    x, branch = torch.zeros(32, 3), torch.ones(32, 3, dtype=dtype, requires_grad=True)
    out = DropPath(0.5).add(x, branch)
    out.sum().backward()
    assert out.dtype == torch.float32 and branch.grad.dtype == dtype
    assert sorted(set(out.flatten().tolist())) == [0., 2.]
    assert torch.equal(branch.grad.float(), out)
