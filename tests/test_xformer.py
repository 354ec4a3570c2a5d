"""XFormer against literal loops, at its limits, and its checkpoints."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from torch import nn
from versions import HALF, half_on_a_cpu
from xformer_models import MODES, SMALL_ARCH, attention

from xvit_mm.checkpoints import CheckpointError, load_official
from xvit_mm.models.backbones import XFormer
from xvit_mm.models.backbones.xformer import MV3Block, PatchTransformer, XFBlock
from xvit_mm.models.layers import CrossFeatureAttention, fold, unfold

# Oracles: the formulas as loops over single tokens and features, in float64.


def literal_attention(layer: CrossFeatureAttention, x, lengths) -> torch.Tensor:
    """Every sequence, and every head in it, on its own."""
    dims, heads = layer.proj.in_features, layer.num_heads
    mixed = torch.zeros(*x.shape[:2], dims, dtype=torch.float64)
    for image in range(len(x)):
        start = 0
        for length in lengths:
            tokens = range(start, start + length)
            qkv = torch.stack([layer.qkv.weight @ x[image, n] + layer.qkv.bias for n in tokens]) \
                if length else torch.zeros(0, 3 * dims, dtype=torch.float64)
            for head in range(heads):
                part = slice(head * dims // heads, (head + 1) * dims // heads)
                q, k, v = (qkv[:, i * dims:(i + 1) * dims][:, part] for i in range(3))
                mixed[image, start:start + length, part] = literal_head(layer, head, q, k, v)
            start += length
    return mixed @ layer.proj.weight.T + layer.proj.bias


def literal_head(layer: CrossFeatureAttention, head: int, q, k, v) -> torch.Tensor:
    """The formula of the module's docstring; q, k, v [N, d]."""
    length, dims = q.shape
    q = torch.stack([row / sum(row**2).sqrt() for row in q]) if length else q
    k = torch.stack([row / sum(row**2).sqrt() for row in k]) if length else k
    temperature = layer.temperature[head]
    if layer.mode == 'vector':
        feature_head, context_rows = head, [head]
    else:
        feature_head, context_rows = 0, range(head * dims, (head + 1) * dims)
    context = torch.zeros(length, len(context_rows), dtype=torch.float64)
    for n in range(length):
        for column, row in enumerate(context_rows):
            context[n, column] = layer.token_conv.bias[row]
            for tap in range(3):
                if 0 <= n + tap - 1 < length:
                    context[n, column] += layer.token_conv.weight[row, :, tap] @ k[n + tap - 1]

    def along_features(row):
        result = torch.zeros(dims, dtype=torch.float64)
        for d in range(dims):
            result[d] = layer.feature_conv.bias[feature_head]
            for tap in range(3):
                if 0 <= d + tap - 1 < dims:
                    result[d] += layer.feature_conv.weight[feature_head, 0, tap] * row[d + tap - 1]
        return result

    if not length:
        return q
    if layer.mode == 'vector':
        feature = along_features(sum(k) / length)
        weights = torch.outer(q @ feature, context[:, 0])  # the N x N matrix that is never built
        return temperature / length * weights @ v
    scores = context * torch.stack([along_features(row) for row in k])
    return temperature / length * q @ (scores.T @ v)


def literal_unfold(x) -> tuple[torch.Tensor, list[int]]:
    """Tokens of one image [C, H, W], position by position and patch by patch."""
    _, height, width = x.shape
    tokens, lengths = [], []
    for p in range(2):
        for q in range(2):
            here = [x[:, row, column] for row in range(height) for column in range(width)
                    if (row % 2, column % 2) == (p, q)]
            tokens, lengths = tokens + here, lengths + [len(here)]
    return torch.stack(tokens), lengths


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('lengths', [(5, 5, 5, 5), (12, 8, 6, 4), (1, 0, 0, 0), (3, 0, 2, 0)])
def test_attention_equals_the_literal_formula(mode, lengths):
    layer = attention(mode)
    x = torch.randn(2, sum(lengths), 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x, lengths), literal_attention(layer, x, lengths))


@pytest.mark.parametrize('mode', MODES)
def test_gradients_of_the_attention_are_those_of_the_literal_formula(mode):
    layer = attention(mode)
    x = torch.randn(1, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = [x, *layer.parameters()]
    target = torch.randn(1, 7, 6, dtype=torch.float64)
    fast, slow = (torch.autograd.grad((y * target).sum(), weights)
                  for y in (layer(x, (4, 3)), literal_attention(layer, x, (4, 3))))
    for a, b in zip(fast, slow, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (4, 3), (1, 4), (3, 1), (1, 1), (2, 2)])
def test_unfold_sorts_tokens_by_their_position_in_the_patch_and_fold_undoes_it(size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    tokens, lengths = unfold(x)
    for image in range(2):
        expected, counts = literal_unfold(x[image])
        assert torch.equal(tokens[image], expected) and list(lengths) == counts
    assert torch.equal(fold(tokens, *size), x)
    weight = torch.randn_like(x)
    (fold(tokens, *size) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('size', [(4, 4), (5, 3)])
def test_patch_transformer_equals_its_parts_computed_one_by_one(mode, size):
    torch.manual_seed(0)
    module = PatchTransformer(4, 6, drop_paths=[0., 0.], attn_dims=10, mlp_ratio=2, num_heads=2,
                              mode=mode, init_lambda=3.).double().eval()
    x = torch.randn(1, 4, *size, dtype=torch.float64)

    def conv_bn_silu(layer, y):
        y = F.conv2d(y, layer.conv.weight, padding=layer.conv.padding) / math.sqrt(1 + 1e-5)
        return y * torch.sigmoid(y)

    def norm(layer, y):
        mean, deviation = y.mean(-1, keepdim=True), y.std(-1, keepdim=True, unbiased=False)
        return (y - mean) / torch.sqrt(deviation**2 + layer.eps)

    y = F.conv2d(conv_bn_silu(module.local, x), module.to_tokens.conv.weight)
    tokens, lengths = literal_unfold(y[0])
    tokens = tokens[None]
    for block in module.blocks:
        tokens = tokens + literal_attention(block.attn, norm(block.norm1, tokens), lengths)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        hidden = F.gelu(F.linear(norm(block.norm2, tokens), fc1.weight, fc1.bias))
        tokens = tokens + F.linear(hidden, fc2.weight, fc2.bias)
    y = conv_bn_silu(module.to_map, fold(norm(module.norm, tokens), *size))
    expected = conv_bn_silu(module.fusion, torch.cat([x, y], dim=1))
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('stride, channels', [(1, 8), (1, 12), (2, 8)])
@pytest.mark.parametrize('kernel', [3, 5])
def test_mv3_block_equals_the_inverted_residual_of_mmpretrain(stride, channels, kernel):
    from mmpretrain.models.utils import InvertedResidual
    theirs = InvertedResidual(
        8, channels, 32, kernel, stride, act_cfg=dict(type='SiLU'),
        se_cfg=dict(channels=32, ratio=4, act_cfg=(dict(type='SiLU'), dict(type='HSigmoid'))))
    ours = MV3Block(8, channels, stride=stride, expand_ratio=4, kernel=kernel)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    names = {'expand_conv': 'expand', 'depthwise_conv': 'depthwise', 'se.conv1': 'se.reduce',
             'se.conv2': 'se.expand', 'linear_conv': 'project'}
    state_dict = theirs.state_dict()
    for old, new in names.items():
        state_dict = {n.replace(f'{old}.', f'{new}.'): t for n, t in state_dict.items()}
    ours.load_state_dict(state_dict)
    x = torch.randn(2, 8, 9, 6)
    torch.testing.assert_close(ours(x), theirs(x))


# What cross feature attention promises.


@pytest.mark.parametrize('size', [(6, 8), (7, 5)])
def test_tokens_see_exactly_the_tokens_at_their_position_in_the_patch(size):
    torch.manual_seed(0)
    block = XFBlock(6, 8, mlp_ratio=2, drop_path=0., num_heads=2, init_lambda=100.).double().eval()
    x = torch.randn(1, 6, *size, dtype=torch.float64)
    changed = x.clone()
    changed[..., 2, 3] += torch.randn(1, 6, dtype=torch.float64)

    def run(y):
        tokens, lengths = unfold(y)
        return fold(block(tokens, lengths), *size)

    difference = (run(x) - run(changed)).abs().sum(1)[0]
    same_position = torch.zeros(size, dtype=torch.bool)
    same_position[0::2, 1::2] = True
    assert not difference[~same_position].any()
    assert (difference[same_position] > 0).all()


@pytest.mark.parametrize('mode', MODES)
def test_scale_of_the_attention_does_not_depend_on_the_number_of_tokens(mode):
    layer = attention(mode)
    token = torch.randn(1, 1, 6, dtype=torch.float64)
    few, many = (layer(token.expand(1, n, 6), (n,))[0, n // 2] for n in (1000, 8000))
    # The ends of a sequence differ from its middle: 2 of 1000 tokens.
    torch.testing.assert_close(few, many, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize('mode', MODES)
def test_temperature_multiplies_what_is_read(mode):
    layer, x = attention(mode), torch.randn(1, 8, 6, dtype=torch.float64)
    once = layer(x, (8,)) - layer.proj.bias
    with torch.no_grad():
        layer.temperature.mul_(24)
    torch.testing.assert_close(layer(x, (8,)) - layer.proj.bias, 24 * once)
    assert (attention(mode).temperature.shape == (2, 1)
            and (CrossFeatureAttention(6, 10, num_heads=2, init_lambda=5.).temperature == 5).all())


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [HALF, torch.bfloat16])
@pytest.mark.parametrize('size', [1e-3, 1., 30.])
def test_low_precision_stays_finite_and_close_for_any_size_of_the_tokens(mode, dtype, size):
    torch.manual_seed(0)
    layer = CrossFeatureAttention(24, 48, num_heads=2, mode=mode, init_lambda=24.)
    x = size * torch.randn(2, 1024, 24)
    exact = layer(x, (256,) * 4)
    low = copy.deepcopy(layer).to(dtype)
    out = low(x.to(dtype), (256,) * 4)
    out.float().square().mean().backward()
    assert (exact - out).norm() <= 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in low.parameters())


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.float32, HALF, torch.bfloat16])
def test_zero_tokens_leave_no_nan(mode, dtype):
    layer = CrossFeatureAttention(8, 16, num_heads=2, mode=mode).to(dtype)
    nn.init.zeros_(layer.qkv.bias)
    x = torch.zeros(1, 64, 8, dtype=dtype, requires_grad=True)
    out = layer(x, (16,) * 4)
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@half_on_a_cpu
@pytest.mark.parametrize('mode', MODES)
def test_sums_over_many_tokens_do_not_overflow_fp16(mode):
    torch.manual_seed(0)
    layer = CrossFeatureAttention(4, 8, num_heads=2, mode=mode, init_lambda=4.)
    nn.init.constant_(layer.qkv.bias, 3.)
    nn.init.constant_(layer.token_conv.bias, 1.)
    x = torch.ones(1, 140_000, 4)  # 70,000 tokens in a sequence exceed the largest number, 65,504
    exact = layer(x, (70_000,) * 2)
    low = layer.half()(x.half(), (70_000,) * 2)
    torch.testing.assert_close(low.float(), exact, rtol=0.02, atol=0.02)


# The backbone as a whole.


def test_kernel_and_widths_come_from_the_arch():
    backbone = XFormer(dict(SMALL_ARCH, kernel_size=3, expand_ratio=2))
    assert backbone.out_channels == (16, 16, 24, 32) and backbone.out_strides == (4, 8, 16, 32)
    assert backbone.stem[1].depthwise.conv.weight.shape == (16, 1, 3, 3)
    assert XFormer().out_channels == (64, 96, 128, 160)


def test_drop_path_rises_linearly_over_the_xf_blocks():
    backbone = XFormer(drop_path_rate=0.16)
    rates = [m.drop_path.drop_prob for m in backbone.modules() if isinstance(m, XFBlock)]
    assert rates == pytest.approx([0.02 * i for i in range(9)])


def test_checkpointing_counts_every_batch_once_in_the_statistics():
    states = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = XFormer(SMALL_ARCH, with_cp=with_cp).train()
        images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            sum(x.square().mean() for x in backbone(images)).backward()
        states.append(backbone.state_dict())
    assert int(states[0]['stem.0.bn.num_batches_tracked']) == 2
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        torch.testing.assert_close(a, b)


def test_folded_and_channels_last_give_the_same_maps():
    torch.manual_seed(0)
    backbone = XFormer(SMALL_ARCH)
    for _ in range(3):  # statistics that are not the initial ones
        backbone(torch.randn(4, 3, 64, 64))
    backbone.eval()
    folded = fuse_conv_bn(copy.deepcopy(backbone)).to(memory_format=torch.channels_last)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        maps = backbone(images), folded(images.to(memory_format=torch.channels_last))
    for a, b in zip(*maps, strict=True):
        assert b.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('settings, message', [
    (dict(arch='m'), "XFormer has no arch 'm'; choose from 's'"),
    (dict(arch=dict(widths=1)), r"unknown entries \['widths'\]"),
    (dict(attn_mode='softmax'), "attn_mode='softmax': choose from 'vector', 'map'"),
    (dict(arch=dict(kernel_size=4)), 'kernel_size=4: must be odd'),
    (dict(arch=dict(num_heads=5)), 'num_heads=5: must divide'),
    (dict(arch=dict(expand_ratio=0)), 'expand_ratio=0: give one whole number from 1'),
    (dict(arch=dict(xf_depths=(1, 2, 4, 3))), r'token_dims=.0, 144, 192, 240. is 0 in a stage'),
    (dict(arch=dict(mv3_depths=(0, 1, 1, 1))), r'mv3_depths=\(0, 1, 1, 1\): give 4 whole numbers'),
    (dict(arch=dict(embed_dims=(8, 8, 8))), r'mv3_depths=\(3, 1, 1, 1\): give 3 whole numbers'),
    (dict(arch=dict(stem_channels=(16,))), r'stem_channels=\(16,\): give 2 whole numbers'),
    (dict(drop_path_rate=1.), r'drop_path_rate=1.0: must be in \[0, 1\)'),
])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        XFormer(**settings)


# Checkpoints: there are no official ones, but our own are accounted for.


class Detector(nn.Module):

    def __init__(self, **settings) -> None:
        super().__init__()
        self.backbone = XFormer(SMALL_ARCH, **settings)
        self.neck = nn.Conv2d(32, 4, 1)


def test_report_covers_every_tensor_of_an_own_checkpoint():
    source, target = Detector(), Detector(out_indices=(0, 1))
    report = load_official(target, {'state_dict': source.state_dict()})
    count = len(target.backbone.state_dict())
    assert report.backbone_tensors == count and len(report.loaded) == count + 2
    assert not report.missing and not report.unexpected
    assert set(report.left_out.values()) == {'of stages that out_indices does not need'}
    assert f'{count} of {count} backbone tensors loaded, 2 others' in str(report)
    assert "XFormer 's'" in str(load_official(XFormer(), XFormer().state_dict()))


def test_checkpoint_of_the_other_attention_is_named():
    with pytest.raises(CheckpointError, match='attn_mode=map.*but the backbone is.*=vector'):
        load_official(Detector(), Detector(attn_mode='map').state_dict())


def test_checkpoint_of_another_kernel_size_is_named():
    source = XFormer(dict(SMALL_ARCH, kernel_size=3))
    with pytest.raises(CheckpointError, match='kernel_size=3.*but the backbone is.*kernel_size=5'):
        load_official(XFormer(SMALL_ARCH), source.state_dict())
    with pytest.raises(CheckpointError, match="kernel_size=3.*but the backbone is XFormer 's'"):
        load_official(XFormer(), XFormer(dict(kernel_size=3)).state_dict())


def test_checkpoint_of_mobilevit_is_named():
    with pytest.raises(CheckpointError, match='not a checkpoint of XFormer: .* like MobileViT'):
        load_official(Detector(), {'layers.2.1.local_rep.0.conv.weight': torch.zeros(1)})
