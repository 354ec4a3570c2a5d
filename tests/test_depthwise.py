"""Depthwise convolutions, whose gradients are computed in parts."""
import pytest
import torch
from torch import nn

from xvit_mm.models.layers import DepthwiseConv2d


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('kernel, stride, size', [
    (3, 1, (6, 5)), (5, 1, (7, 9)), (5, 2, (7, 9)), (5, 2, (8, 6)), (7, 1, (8, 9)), (7, 3, (10, 11)),
    (5, 1, (1, 2)), ((3, 7), (2, 1), (6, 8)),
], ids=str)
def test_results_and_gradients_are_those_of_torch(kernel, stride, size, layout):
    torch.manual_seed(0)
    padding = kernel // 2 if isinstance(kernel, int) else tuple(side // 2 for side in kernel)
    ours = DepthwiseConv2d(6, 6, kernel, stride, padding, groups=6, bias=False)
    exact = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False).double()
    exact.load_state_dict(ours.state_dict())
    image = torch.randn(3, 6, *size).contiguous(memory_format=layout).requires_grad_()
    grad = torch.randn_like(ours(image))
    ours(image).backward(grad)
    expected_image = image.detach().double().requires_grad_()
    expected = exact(expected_image)
    expected.backward(grad.double())
    for found, wanted in ((ours(image), expected), (image.grad, expected_image.grad),
                          (ours.weight.grad, exact.weight.grad)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('frozen', ['weight', 'image'])
def test_what_needs_no_gradient_gets_none(frozen):
    layer = DepthwiseConv2d(4, 4, 5, padding=2, groups=4, bias=False)
    image = torch.randn(1, 4, 6, 6, requires_grad=frozen != 'image')
    layer.weight.requires_grad_(frozen != 'weight')
    layer(image).sum().backward()
    assert (layer.weight.grad is None) == (frozen == 'weight')
    assert (image.grad is None) == (frozen == 'image')


def test_autocast_computes_in_its_own_type():
    layer, plain = (cls(4, 4, 5, padding=2, groups=4, bias=False)
                    for cls in (DepthwiseConv2d, nn.Conv2d))
    plain.load_state_dict(layer.state_dict())
    image = torch.randn(2, 4, 6, 6)
    with torch.autocast('cpu', torch.bfloat16):
        found, expected = layer(image), plain(image)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_an_empty_batch_has_a_gradient():
    layer = DepthwiseConv2d(4, 4, 5, padding=2, groups=4, bias=False)
    layer(torch.randn(0, 4, 6, 6)).sum().backward()
    assert not layer.weight.grad.any()
