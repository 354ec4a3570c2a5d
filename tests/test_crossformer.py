"""CrossFormer against literal loops, against the official code, and against its known defects."""
import functools
import math
import re
from collections import OrderedDict

import pytest
import torch
from golden import deviation, golden_cases, golden_image, golden_record, golden_weights
from torch import nn
from versions import HALF, not_in_torch_2_1

from xvit_mm.checkpoints import CheckpointError, load_official
from xvit_mm.models.backbones import CrossFormer, crossformer
from xvit_mm.models.backbones.crossformer import (CrossScaleEmbedding, DynamicPositionBias,
                                                  GroupedAttention, position_biases)
from xvit_mm.models.heads import CrossFormerClsHead
from xvit_mm.models.layers import group_tokens, grouping

SMALL_ARCH = dict(embed_dims=32, depths=(2, 2), num_heads=(1, 2), group_size=(3, 3),
                  interval=(4, 2), drop_path_rate=0.)


def small(**settings) -> CrossFormer:
    arch = SMALL_ARCH | settings.pop('arch', {})
    return CrossFormer(arch, out_indices=(0, 1), **settings)


class Classifier(nn.Module):

    def __init__(self, arch: str, num_classes: int = 1000) -> None:
        super().__init__()
        self.backbone = CrossFormer(arch)
        self.head = CrossFormerClsHead(num_classes, self.backbone.out_channels[-1])

    def forward(self, x):
        return self.head(self.backbone(x))


@pytest.fixture(params=['exact', 'padded border', 'symbolic', 'opaque'])
def formulation(request, monkeypatch):
    """The ways to attend within groups: a CPU's, a GPU's, that of exported models, and that of
    models compiled for inference on a CPU."""
    monkeypatch.setattr(grouping._groupings, '_entries', OrderedDict())
    if request.param == 'padded border':
        monkeypatch.setattr(grouping, 'calls_are_dear', lambda device: True)
    elif request.param == 'symbolic':
        monkeypatch.setattr(grouping, 'sizes_are_symbolic', lambda: True)
    elif request.param == 'opaque':
        for name in ('is_compiling', 'sizes_are_symbolic'):
            monkeypatch.setattr(grouping, name, lambda: True)


def attended(module: GroupedAttention, x, group: int, interval: int) -> torch.Tensor:
    groups = group_tokens(*x.shape[1:3], group, interval, x.device)
    table = position_biases([module.position_bias], groups.offsets)[0]
    return module(x, groups, groups.pair_biases(table.T[None])[0])


# Oracles: the papers' words as loops over single tokens, in float64.


def literal_partner_rows(row: int, height: int, group: int, interval: int) -> list[int]:
    """Rows that share a group with `row`, padded rows left out."""
    window = row // (group * interval)
    first = window * group * interval
    rows = [r for r in range(first, first + group * interval) if r % interval == row % interval]
    return [r for r in rows if r < height]


def literal_position_bias(layers: nn.Sequential, dh: int, dw: int) -> torch.Tensor:
    """Equation 4 of the paper for one offset: Linear, then three times LayerNorm, ReLU, Linear."""
    x = torch.tensor([float(dh), float(dw)], dtype=torch.float64)
    x = layers[0].weight @ x + layers[0].bias
    for norm, linear in ((layers[1], layers[3]), (layers[4], layers[6]), (layers[7], layers[9])):
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + norm.eps) * norm.weight + norm.bias
        x = linear.weight @ x.clamp(min=0) + linear.bias
    return x


def literal_attention(module: GroupedAttention, x, group: int, interval: int) -> torch.Tensor:
    """Every token attends to the real tokens of its group, one query and one head at a time."""
    batch, height, width, channels = x.shape
    heads, dim = module.num_heads, channels // module.num_heads
    one_group = min(height, width) <= group
    q, k, v = (x @ w.T + b for w, b in zip(module.qkv.weight.split(channels),
                                           module.qkv.bias.split(channels)))
    bias = functools.cache(functools.partial(literal_position_bias, module.position_bias.layers))
    out = torch.zeros_like(x)
    for b in range(batch):
        for row in range(height):
            for col in range(width):
                if one_group:
                    keys = [(r, c) for r in range(height) for c in range(width)]
                else:
                    keys = [(r, c)
                            for r in literal_partner_rows(row, height, group, interval)
                            for c in literal_partner_rows(col, width, group, interval)]
                step = 1 if one_group else interval
                for head in range(heads):
                    part = slice(head * dim, (head + 1) * dim)
                    logits = torch.stack([
                        q[b, row, col, part] @ k[b, r, c, part] / math.sqrt(dim) +
                        bias((row - r) // step, (col - c) // step)[head] for r, c in keys])
                    weights = logits.exp() / logits.exp().sum()
                    out[b, row, col, part] = sum(
                        w * v[b, r, c, part] for w, (r, c) in zip(weights, keys))
    return out @ module.proj.weight.T + module.proj.bias


# Intervals 1 (SDA) and more (LDA); sizes that the group divides, that it does not, that leave
# groups which are nothing but padding in the official code (7 rows with G * I = 12), and tiny ones.
@pytest.mark.parametrize('interval', [1, 2, 4])
@pytest.mark.parametrize('size', [(6, 6), (5, 7), (13, 4), (7, 12), (3, 8), (2, 2), (1, 5)])
def test_grouped_attention_equals_the_literal_loops(size, interval, formulation):
    torch.manual_seed(0)
    module = GroupedAttention(32, 2).double()
    nn.init.normal_(module.position_bias.layers[9].weight)
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = literal_attention(module, x, 3, interval)
        found = attended(module, x, 3, interval)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(attended(module, x, 3, interval), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('size', [(24, 24), (26, 31), (9, 40), (5, 7)])
def test_ways_to_attend_have_the_same_gradients(size, monkeypatch):
    torch.manual_seed(0)
    module = GroupedAttention(32, 2).double()
    x = torch.randn(2, *size, 32, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    gradients = []
    for switch, value in ((None, None), ('calls_are_dear', lambda device: True),
                          ('sizes_are_symbolic', lambda: True)):
        with monkeypatch.context() as patch:
            patch.setattr(grouping._groupings, '_entries', OrderedDict())
            if switch:
                patch.setattr(grouping, switch, value)
            out = attended(module, x, 3, 4)
            gradients.append(torch.autograd.grad(out, [x, *module.parameters()], cotangent))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-9)


def test_position_biases_equal_the_literal_formula_for_every_offset_of_every_block():
    torch.manual_seed(0)
    modules = [DynamicPositionBias(96, 3).double() for _ in range(2)]
    for parameter in (p for module in modules for p in module.parameters()):
        nn.init.normal_(parameter)
    offsets = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-3, 4)).float()
    table = position_biases(modules, offsets)
    for module, rows in zip(modules, table, strict=True):
        torch.testing.assert_close(module(offsets), rows)
        for (dh, dw), biases in zip(offsets.tolist(), rows, strict=True):
            torch.testing.assert_close(biases, literal_position_bias(module.layers, dh, dw))


def test_pairs_lead_to_the_offset_between_their_tokens():
    groups = group_tokens(9, 10, 4, 1, torch.device('cpu'))
    assert [part.tokens for part in groups.parts] == [16, 8, 4, 2]
    first = groups.offsets[groups.pairs[256:320].long()].view(8, 8, 2)  # 4 rows, 2 columns
    for i in range(8):
        for j in range(8):
            assert first[i, j].tolist() == [i // 2 - j // 2, i % 2 - j % 2]


def test_a_padded_border_takes_two_attention_calls(monkeypatch):
    monkeypatch.setattr(grouping, 'calls_are_dear', lambda device: True)
    monkeypatch.setattr(grouping._groupings, '_entries', OrderedDict())
    counts = [len(group_tokens(*size, 7, interval, torch.device('cpu')).parts)
              for size, interval in (((28, 28), 1), ((30, 31), 1), ((100, 150), 8), ((5, 90), 2))]
    assert counts == [1, 2, 2, 1]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('kernels, stride', [((4, 8, 16, 32), 4), ((2, 4), 2)])
@pytest.mark.parametrize('size', [(8, 12), (9, 5), (1, 1)])
def test_embedding_equals_one_dot_product_per_position(kernels, stride, size, training):
    torch.manual_seed(0)
    module = CrossScaleEmbedding(3, 16, kernels=kernels, stride=stride).double()
    x = torch.randn(1, *size, 3, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        out = module(x)
    rows, cols = (-(-s // stride) for s in size)
    assert out.shape == (1, rows, cols, 16)
    margin = max(kernels)
    padded = torch.zeros(size[0] + 2 * margin + stride, size[1] + 2 * margin + stride, 3).double()
    padded[margin:margin + size[0], margin:margin + size[1]] = x[0]
    for r in range(rows):
        for c in range(cols):
            parts = []
            for conv, kernel in zip(module.projs, kernels):
                top, left = (margin + i * stride - (kernel - stride) // 2 for i in (r, c))
                patch = padded[top:top + kernel, left:left + kernel].permute(2, 0, 1)
                parts.append((conv.weight * patch).sum((1, 2, 3)) + conv.bias)
            torch.testing.assert_close(out[0, r, c], torch.cat(parts))
    assert [conv.out_channels for conv in module.projs][0] == 8


@pytest.mark.parametrize('kernels', [(4, 8, 16, 32), (4, 18)])
def test_embedding_has_the_gradients_of_its_convolutions(kernels):
    torch.manual_seed(0)
    module = CrossScaleEmbedding(3, 16, kernels=kernels, stride=4).double()
    x = torch.randn(2, 20, 12, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.cat([conv(x.permute(0, 3, 1, 2)) for conv in module.projs], dim=1)
    cotangent = torch.randn_like(expected)
    leaves = [x, *module.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(module(x), leaves, cotangent.permute(0, 2, 3, 1)),
        torch.autograd.grad(expected, leaves, cotangent), rtol=1e-9, atol=1e-9)


def test_blocks_alternate_short_and_long_distance():
    backbone = small().eval()
    seen = []
    for block in backbone.stages[0].blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    backbone(torch.randn(1, 3, 100, 100))
    neighbours, distant = (groups.order[:9].tolist() for groups in seen)
    assert neighbours == [0, 1, 2, 25, 26, 27, 50, 51, 52]
    assert distant == [0, 4, 8, 100, 104, 108, 200, 204, 208]


def test_cooling_follows_every_third_block_but_the_last():
    backbone = small(arch=dict(depths=(6, 4), cooling=True))
    cooled = [[not isinstance(b.cooling, nn.Identity) for b in s.blocks] for s in backbone.stages]
    assert cooled == [[False, False, True, False, False, False], [False, False, True, False]]


def test_drop_path_rises_linearly_over_all_blocks():
    backbone = CrossFormer('t', drop_path_rate=0.15)
    rates = [b.drop_path.drop_prob for s in backbone.stages for b in s.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(16)], abs=1e-6)


# The official code.


@pytest.mark.parametrize('path', golden_cases('crossformer_*_cls.json'), ids=lambda p: p.stem)
def test_logits_equal_the_official_classifier(path):
    record = golden_record(path)
    model = Classifier(path.stem.removeprefix('crossformer_').removesuffix('_cls')).eval()
    report = load_official(model, {'model': golden_weights(record['keys'])})
    assert not report.missing and not report.unexpected and not report.left_out
    assert sum(p.numel() for p in model.parameters()) == record['params']
    with torch.no_grad():
        logits = model(golden_image(*record['image']))
    assert deviation(logits, record['logits']) <= 1e-4


@pytest.mark.parametrize('path', golden_cases('crossformer_*_dense.json'), ids=lambda p: p.stem)
def test_maps_equal_the_official_detection_backbone_at_every_size(path):
    record = golden_record(path)
    arch = path.stem.removeprefix('crossformer_').removesuffix('_dense')
    backbone = CrossFormer(
        arch, group_size=record['group_size'], interval=record['interval']).eval()
    load_official(backbone, golden_weights(record['keys']))
    for case in record['cases']:
        with torch.no_grad():
            maps = backbone(golden_image(*case['image']))
        assert max(deviation(x, y) for x, y in zip(maps, case['features'], strict=True)) <= 1e-4


# Defects of the official code, as listed in docs/crossformer.md.


def test_defect_1_a_small_image_does_not_turn_long_distance_attention_off():
    backbone = small().eval()
    image = torch.randn(1, 3, 100, 100)
    with torch.no_grad():
        before = backbone(image)
        backbone(torch.randn(1, 3, 8, 8))
        after = backbone(image)
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_defect_2_checkpointing_runs():
    backbone = small(with_cp=True).train()
    backbone(torch.randn(1, 3, 33, 47))[-1].sum().backward()
    assert backbone.stages[0].blocks[0].attn.qkv.weight.grad.any()


@pytest.mark.parametrize('arch', list(CrossFormer.variants))
def test_defects_3_and_4_every_variant_builds_without_a_checkpoint(arch):
    with torch.device('meta'):
        backbone = CrossFormer(arch)
    assert backbone.out_strides == (4, 8, 16, 32)
    built = small()
    built.init_weights()
    assert built.stages[0].blocks[0].mlp.fc1.weight.std() < 0.03


def test_defect_5_constants_are_derived_once_in_eval_mode(monkeypatch):
    backbone = small().eval()
    calls = []
    monkeypatch.setattr(crossformer, 'position_biases', lambda modules, offsets: (
        calls.append(len(modules)) or position_biases(modules, offsets)))
    with torch.no_grad():
        for size in (60, 60, 64, 97):
            backbone(torch.randn(1, 3, size, size))
    assert calls == [2, 2]  # the blocks of each stage, for all sizes


def test_defect_6_odd_maps_go_through_every_stage():
    shapes = [x.shape[2:] for x in CrossFormer('t').eval()(torch.randn(1, 3, 37, 101))]
    assert shapes == [(10, 26), (5, 13), (3, 7), (2, 4)]


def test_defect_7_a_released_file_loads_as_it_is(tmp_path):
    source = Classifier('t')
    record = golden_record(golden_cases('crossformer_t_cls.json')[0])
    torch.save({'model': golden_weights(record['keys']), 'epoch': 300}, tmp_path / 'released.pth')
    report = load_official(source.backbone, tmp_path / 'released.pth')
    assert "CrossFormer 't': 444 of 444 backbone tensors loaded" in str(report)
    assert 'left out, the classification head: ' in str(report)


# Precision and speed.


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, HALF])
def test_groups_of_nothing_but_padding_leave_no_nan(dtype, formulation):
    # 8 rows with G * I = 12: in the official code a third of the long-distance groups is padding.
    torch.manual_seed(0)
    module = GroupedAttention(32, 2).to(dtype)
    x = torch.randn(1, 13, 29, 32, dtype=dtype, requires_grad=True)
    out = attended(module, 100 * x, 3, 4)
    out.float().square().mean().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@not_in_torch_2_1('fused attention with a bias on a CPU')
def test_attention_is_fused_in_eval_mode():
    # No N x N matrix: torch's profiler must not see the unfused operators of attention.
    backbone = small().eval()
    with torch.no_grad(), torch.profiler.profile() as profile:
        backbone(torch.randn(1, 3, 70, 70))
    names = {event.key for event in profile.key_averages()}
    assert 'aten::_scaled_dot_product_flash_attention_for_cpu' in names
    assert not names & {'aten::_softmax', 'aten::softmax', 'aten::bmm'}


# Settings that cannot work.


@pytest.mark.parametrize('kernel_sizes', [
    ((4,), (2,)), ((4, 8), (2, 4)), ((4, 8, 16, 32), (2, 4, 8)),
])
def test_kernel_sizes_of_the_embeddings_come_from_the_arch(kernel_sizes):
    arch = dict(SMALL_ARCH, kernel_sizes=kernel_sizes)
    backbone = CrossFormer(arch, (0, 1))
    assert tuple(tuple(proj.kernel_size[0] for proj in stage.embed.projs)
                 for stage in backbone.stages) == kernel_sizes
    maps = backbone(torch.randn(1, 3, 37, 50))
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 10, 13), (64, 5, 7)]
    sum(x.square().sum() for x in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert not load_official(CrossFormer(arch, (0, 1)), backbone.state_dict()).missing
    if kernel_sizes[1] != (2, 4):
        with pytest.raises(CheckpointError, match=re.escape(f'kernel_sizes={kernel_sizes}')):
            load_official(CrossFormer(SMALL_ARCH, (0, 1)), backbone.state_dict())


@pytest.mark.parametrize('settings, message', [
    (dict(arch='m'), "no arch 'm'; choose from 't', 's', 'b', 'l', 'pp_s'"),
    (dict(arch=dict(embed_dims=64, depths=(1, 1))), r'num_heads=\(3, 6, 12, 24\): give 2 whole'),
    (dict(arch=dict(SMALL_ARCH, heads=3)), "unknown entries .'heads'."),
    (dict(arch='s', group_size=(7, 7)), r'group_size=\(7, 7\): give 4 whole numbers'),
    (dict(arch='s', interval=(8, 4, 2, 0)), 'interval='),
    (dict(arch=dict(SMALL_ARCH, embed_dims=36)), 'embed_dims=36: must be a multiple of 8'),
    (dict(arch=dict(SMALL_ARCH, num_heads=(3, 3))), '3 heads do not divide the 32 channels'),
    (dict(arch='s', drop_path_rate=1.5), 'drop_path_rate=1.5'),
    (dict(arch=dict(SMALL_ARCH, kernel_sizes=((4, 8),))), r'give a tuple for each of 2 stages'),
    (dict(arch=dict(SMALL_ARCH, kernel_sizes=((4, 8), 2))), 'stage 1=2: give one or more whole'),
    (dict(arch=dict(SMALL_ARCH, kernel_sizes=((2, 4), (2,)))), 'of stage 0 must be 4 or larger'),
    (dict(arch=dict(SMALL_ARCH, kernel_sizes=((4, ), (2, 5)))), 'stage 1 must be 2 or larger by an'),
    (dict(arch=dict(SMALL_ARCH, kernel_sizes=(range(4, 18, 2), (2, )))), '7 kernels do not share'),
])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CrossFormer(**settings)


@torch.no_grad()
def test_biases_kept_for_one_small_map_are_not_taken_for_another():
    """Maps of 7 x 13 and 13 x 7 tokens are one group each, and have as many offsets."""
    model = CrossFormer(
        dict(embed_dims=32, depths=(1,), num_heads=(1,), group_size=(7,), interval=(1,)), (0,))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    wide, tall = torch.randn(1, 3, 28, 52), torch.randn(1, 3, 52, 28)
    expected = model.eval()(tall)[0]
    model.eval()  # forgets
    model(wide)
    assert torch.equal(model(tall)[0], expected)
