"""Shortcuts of the point-wise layers of visual tokens, against the formulas as they are written."""
import copy

import pytest
import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from versions import half_on_a_cpu

from xvit_mm.models.layers.cache import EvalCache, shortcuts_allowed, without_shortcuts
from xvit_mm.models.layers.pointwise import (PointwiseConv, add_weighted_sum, apply_filters,
                                             product_logits, weighted_sum)
from xvit_mm.models.necks import VTFPN
from xvit_mm.utils.complexity import count_macs

B, C, H, W, L = 2, 8, 5, 7, 3
FORMATS = [torch.contiguous_format, torch.channels_last]
NORMS = [None, dict(type='BN'), dict(type='BN', affine=False), dict(type='GN', num_groups=2),
         dict(type='BN', track_running_stats=False)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(norm_cfg: dict | None, groups: int = 2, bias: bool = False) -> PointwiseConv:
    """With statistics and weights that are far from those of an untrained norm."""
    torch.manual_seed(0)
    conv = PointwiseConv(
        C, 2 * C, 1, groups=groups, bias=bias, norm_cfg=norm_cfg, act_cfg=None).double()
    for name, tensor in conv.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, *(0.5, 1.5) if 'var' in name else (-1., 1.))
    return conv


def literal(conv: PointwiseConv, x: torch.Tensor) -> torch.Tensor:
    weight = torch.block_diag(*conv.conv.weight.flatten(1).chunk(conv.conv.groups))
    out = torch.einsum('oc,bchw->bohw', weight, x)
    if conv.conv.bias is not None:
        out = out + conv.conv.bias[:, None, None]
    return conv.norm(out) if conv.with_norm else out


def gradients_if_close(found, expected, inputs, twins=None) -> tuple[torch.Tensor, ...]:
    """Check values, and the gradients of a random function of them."""
    torch.testing.assert_close(found, expected)
    cotangent = random(*expected.shape, seed=9)
    gradients = torch.autograd.grad((found * cotangent).sum(), inputs)
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * cotangent).sum(), twins or inputs))
    return gradients


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('norm_cfg', NORMS, ids=str)
@pytest.mark.parametrize('bias', [True, False])
def test_layer_is_a_convolution_and_its_norm(norm_cfg, bias, training):
    conv = layer(norm_cfg, bias=bias).train(training)
    x = random(B, C, H, W).requires_grad_()
    twin = copy.deepcopy(conv)
    gradients_if_close(
        conv(x), literal(twin, x), [x, *conv.parameters()], [x, *twin.parameters()])
    torch.testing.assert_close(conv.state_dict(), twin.state_dict())


def test_layer_stays_the_same_after_fusion_by_mmcv():
    conv = layer(dict(type='BN')).eval()
    x = random(B, C, H, W)
    torch.testing.assert_close(fuse_conv_bn(copy.deepcopy(conv))(x), conv(x))


@half_on_a_cpu
def test_a_folded_norm_of_half_precision_keeps_its_accuracy():
    conv = layer(dict(type='BN')).eval()
    x = random(B, C, H, W)
    exact = conv(x)
    low = conv.half()(x.half())
    assert low.dtype == torch.half and (low - exact).norm() <= 2e-3 * exact.norm()


@pytest.mark.parametrize('fmt', FORMATS, ids=str)
@pytest.mark.parametrize('norm_cfg', [*NORMS[:4]], ids=str)
@pytest.mark.parametrize('groups', [1, 4])
def test_filters_projected_in_place_of_pixels_give_the_same_products(norm_cfg, groups, fmt):
    conv = layer(norm_cfg, groups).eval()
    x = random(B, C, H, W).contiguous(memory_format=fmt).requires_grad_()
    filters = random(B, 2 * C, L, seed=1).requires_grad_()
    expected = torch.einsum('bcl,bchw->blhw', filters, literal(conv, x)).flatten(2)
    gradients_if_close(
        product_logits(filters, conv, x), expected, [x, filters, *conv.parameters()])
    with without_shortcuts():
        torch.testing.assert_close(product_logits(filters, conv, x), expected)


def test_while_statistics_are_those_of_the_batch_pixels_are_projected():
    conv = layer(dict(type='BN')).train()
    x, filters = random(B, C, H, W), random(B, 2 * C, L, seed=1)
    expected = torch.einsum('bcl,bchw->blhw', filters, literal(copy.deepcopy(conv), x)).flatten(2)
    before = conv.norm.running_mean.clone()
    torch.testing.assert_close(product_logits(filters, conv, x), expected)
    assert not torch.equal(conv.norm.running_mean, before)


@pytest.mark.parametrize('fmt', FORMATS, ids=str)
@pytest.mark.parametrize('batch', [1, 2])
def test_products_keep_the_layout_of_the_map_and_of_its_gradient(fmt, batch):
    x = random(batch, C, H, W).contiguous(memory_format=fmt).requires_grad_()
    filters, value = (random(batch, C, L, seed=i).requires_grad_() for i in (1, 2))
    weights = random(batch, L, H * W, seed=3).requires_grad_()
    out = add_weighted_sum(x, value, weights[:, None])
    assert out.is_contiguous(memory_format=fmt) and out.stride() == x.stride()
    gradients_if_close(out, x + (value @ weights).view(x.shape), [x, value, weights])
    for found, expected, others in [
        (apply_filters(filters, x), torch.einsum('bcl,bcp->blp', filters, x.flatten(2)), filters),
        (weighted_sum(x, weights), torch.einsum('blp,bcp->bcl', weights, x.flatten(2)), weights),
    ]:
        assert gradients_if_close(found, expected, [x, others])[0].stride() == x.stride()
    with torch.no_grad():
        torch.testing.assert_close(
            weighted_sum(x.detach(), weights), torch.einsum('blp,bcp->bcl', weights, x.flatten(2)))


@pytest.mark.parametrize('fmt', FORMATS, ids=str)
@pytest.mark.parametrize('num_heads', [1, 2])
def test_a_pyramid_gives_the_same_with_and_without_shortcuts(num_heads, fmt):
    torch.manual_seed(0)
    neck = VTFPN([8, 16], 16, num_outs=2, token_channels=32, num_layers=2, num_heads=num_heads)
    neck.double().train()
    maps = [random(B, 8, 12, 10).contiguous(memory_format=fmt),
            random(B, 16, 6, 5).contiguous(memory_format=fmt)]
    for parameter in neck.parameters():
        # Projectors start at zero.
        nn.init.normal_(parameter, std=0.5)
    neck(maps)
    neck.eval()
    found = neck(maps)
    with without_shortcuts():
        torch.testing.assert_close(found, neck([x.contiguous() for x in maps]))
    assert num_heads > 1 or all(x.is_contiguous(memory_format=fmt) for x in found)


def test_complexity_counts_formulas_as_they_are_written():
    neck = VTFPN([8], 16, num_outs=1, token_channels=32, num_tokens=4).eval()
    model = nn.Sequential(Maps(), neck)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    queries = 16 * 16 // 16 * 32 * 32  # channels, channels, groups, pixels
    shortcut = 16 * 16 // 16 * 4 + 16 * 4  # the same for four tokens, and their share of the norm
    written = count_macs(model, 32)
    assert counter.get_total_flops() // 2 == written - queries + shortcut


class Maps(nn.Module):

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.new_ones(len(images), 8, *images.shape[2:])]


def test_nothing_is_remembered_without_shortcuts():
    cache, computed = EvalCache().eval(), []
    with torch.no_grad():
        for _ in range(2):
            cache.cached('size', lambda: computed.append(1))
        assert len(computed) == 1
        with without_shortcuts():
            cache.cached('size', lambda: computed.append(1))
    assert len(computed) == 2 and shortcuts_allowed()
