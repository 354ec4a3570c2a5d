"""Visual tokens: operators against literal loops, published sizes, weights, detectors, pictures."""
import copy
import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from versions import HALF

from xvit_mm.checkpoints import CheckpointError, load_official
from xvit_mm.models.backbones import VTResNet, vt_resnet
from xvit_mm.models.heads import VTClsHead
from xvit_mm.models.layers import (ClusteringTokenizer, FilterTokenizer, PointwiseTokens,
                                   PoolingTokenizer, Projector, RecurrentTokenizer,
                                   TokenTransformer, visual_tokens)
from xvit_mm.models.necks import VTFPN
from xvit_mm.registry import MODELS
from xvit_mm.utils.complexity import count_macs
from xvit_mm.visualization import draw_tokens

C, CT, L, H, W = 8, 16, 6, 3, 5
TOKENIZING = dict(num_tokens=L, norm_cfg=None)
SMALL = dict(depth=18, base_channels=8, token_channels=32, num_tokens=4)
QUERY_GAIN = 0.1
RESNET_50 = (256, 512, 1024, 2048)


@pytest.fixture
def narrow_groups(monkeypatch):
    """Groups of 4 channels instead of 64, so that small layers have several."""
    monkeypatch.setattr(visual_tokens, 'GROUP_WIDTH', 4)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def tensor(numbers: list) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def build(cls, *args, **settings) -> nn.Module:
    torch.manual_seed(0)
    module = cls(*args, **settings).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


# Oracles: the formulas as loops over single numbers, in float64.


def literal_layer(layer, vector: list[float]) -> list[float]:
    """A point-wise layer, grouped or not, on the channels of one pixel or token."""
    if isinstance(layer, nn.Identity):
        return vector
    weight, groups = layer.conv.weight.flatten(1).tolist(), layer.conv.groups
    inputs, outputs = len(vector) // groups, len(weight) // groups
    return [sum(w * vector[o // outputs * inputs + i] for i, w in enumerate(row))
            for o, row in enumerate(weight)]


def literal_softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def mixed(weights: list[float], vectors: list[list[float]]) -> list[float]:
    return [sum(w * v[c] for w, v in zip(weights, vectors, strict=True))
            for c in range(len(vectors[0]))]


def columns(x: torch.Tensor) -> list[list[float]]:
    """The pixels of a map [C, H, W], or the tokens of [C, L], as vectors."""
    return x.flatten(1).T.tolist()


def literal_tokenizer(module, x: torch.Tensor, filters: list, scaled: bool = True) -> torch.Tensor:
    """One token per filter: project(sum_p softmax_p(filter . x_p / sqrt(C)) value(x_p))."""
    scale = 1 / math.sqrt(len(x)) if scaled else 1
    keys = values = columns(x)
    if isinstance(module, RecurrentTokenizer):
        keys = [literal_layer(module.key, pixel) for pixel in keys]
    values = [literal_layer(module.value, pixel) for pixel in values]
    found = [mixed(literal_softmax([scale * dot(f, key) for key in keys]), values)
             for f in filters]
    return tensor([literal_layer(module.project, token) for token in found]).T


def literal_windows(x: torch.Tensor, rows: int, cols: int) -> list[list[float]]:
    """Mean vectors of rows x cols windows; window i of n goes from floor(i S / n) to
    ceil((i + 1) S / n)."""
    def window(i, n, size):
        return range(i * size // n, -(-(i + 1) * size // n))
    means = []
    for r in range(rows):
        for c in range(cols):
            pixels = [x[:, y, z].tolist() for y in window(r, rows, x.shape[1])
                      for z in window(c, cols, x.shape[2])]
            means.append([sum(p[k] for p in pixels) / len(pixels) for k in range(len(x))])
    return means


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(dot(vector, vector))
    return [v / length for v in vector]


def literal_centroids(x: torch.Tensor) -> list[list[float]]:
    """Lloyd's algorithm on unit vectors, from windows as seeds."""
    pixels = [unit(pixel) for pixel in columns(x)]
    centroids = [unit(seed) for seed in literal_windows(x, 2, 3)]
    for _ in range(visual_tokens.KMEANS_STEPS):
        nearest = [max(range(L), key=lambda k: dot(centroids[k], pixel)) for pixel in pixels]
        for k in range(L):
            if members := [p for p, n in zip(pixels, nearest) if n == k]:
                centroids[k] = unit([sum(column) for column in zip(*members)])
    return centroids


def literal_transformer(module: TokenTransformer, tokens: torch.Tensor, scaled: bool):
    """Equations 3 and 4, one head and one token at a time."""
    tokens, heads = columns(tokens), module.num_heads
    keys = [literal_layer(module.key, t) for t in tokens]
    queries = [literal_layer(module.query, t) for t in tokens]
    d, dv = len(keys[0]) // heads, len(tokens[0]) // heads
    scale = 1 / math.sqrt(d) if scaled else 1
    results = []
    for token, key in zip(tokens, keys):
        related = []
        for h in range(heads):
            logits = [scale * dot(key[h * d:h * d + d], q[h * d:h * d + d]) for q in queries]
            related += mixed(literal_softmax(logits), [t[h * dv:h * dv + dv] for t in tokens])
        summed = [a + b for a, b in zip(token, related)]
        hidden = [max(0, v) for v in literal_layer(module.fc1, summed)]
        results.append([a + b for a, b in zip(summed, literal_layer(module.fc2, hidden))])
    return tensor(results).T


def literal_projector(module: Projector, x, tokens, scaled: bool) -> torch.Tensor:
    """The projector's formula, one head and one pixel at a time: [C, H, W] to [C_out, H, W]."""
    heads, tokens = module.num_heads, columns(tokens)
    keys = [literal_layer(module.key, t) for t in tokens]
    values = [literal_layer(module.value, t) for t in tokens]
    d = len(keys[0]) // heads
    scale = 1 / math.sqrt(d) if scaled else 1
    pixels = []
    for pixel in columns(x):
        query, written = literal_layer(module.query, pixel), []
        for h in range(heads):
            part = slice(h * d, h * d + d)
            weights = literal_softmax([scale * dot(query[part], key[part]) for key in keys])
            written += mixed(weights, [value[part] for value in values])
        pixels.append([a + b for a, b in zip(literal_layer(module.lateral, pixel), written)])
    return tensor(pixels).T.unflatten(1, x.shape[1:])


def assert_equal(results: torch.Tensor, expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(results, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('scale_logits', [True, False])
@pytest.mark.parametrize('value_conv', [True, False])
@pytest.mark.parametrize('token_channels', [CT, C])
def test_filter_tokenizer_equals_literal_loops(
        narrow_groups, value_conv, token_channels, scale_logits):
    module = build(FilterTokenizer, C, token_channels, value_conv=value_conv,
                   scale_logits=scale_logits, **TOKENIZING)
    x, filters = random(2, C, H, W), module.coefficients.weight.flatten(1).tolist()
    assert not value_conv or module.value.conv.groups == 2
    assert_equal(
        module(x), [literal_tokenizer(module, image, filters, scale_logits) for image in x])


@pytest.mark.parametrize('scale_logits', [True, False])
def test_recurrent_tokenizer_equals_literal_loops(narrow_groups, scale_logits):
    module = build(RecurrentTokenizer, C, CT, scale_logits=scale_logits, **TOKENIZING)
    x, tokens = random(2, C, H, W), random(2, CT, L)
    expected = []
    for image, earlier in zip(x, tokens):
        filters = [literal_layer(module.query, t) for t in columns(earlier)]
        expected.append(literal_tokenizer(module, image, filters, scale_logits))
    assert_equal(module(x, tokens), expected)


@pytest.mark.parametrize('size', [(H, W), (1, 1), (4, 6)])
def test_pooling_tokenizer_equals_literal_loops(size):
    module = build(PoolingTokenizer, C, CT, **TOKENIZING)
    x = random(2, C, *size)
    assert_equal(module(x), [
        tensor([literal_layer(module.project, t) for t in literal_windows(image, 2, 3)]).T
        for image in x])


@pytest.mark.parametrize('size', [(9, 11), (1, 2)])  # the second leaves clusters empty
def test_clustering_tokenizer_equals_literal_loops(narrow_groups, size):
    module = build(ClusteringTokenizer, C, CT, **TOKENIZING)
    x = random(2, C, *size)
    centroids = [literal_centroids(image) for image in x]
    torch.testing.assert_close(  # k-means itself runs in float32
        module.centroids(x), tensor(centroids).mT, rtol=1e-5, atol=1e-6)
    expected = [literal_tokenizer(module, *pair) for pair in zip(x, centroids)]
    torch.testing.assert_close(module(x), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('scale_logits', [True, False])
@pytest.mark.parametrize('num_heads', [1, 4])
def test_token_transformer_equals_literal_loops(num_heads, scale_logits):
    module = build(
        TokenTransformer, CT, num_heads=num_heads, scale_logits=scale_logits, norm_cfg=None)
    tokens = random(2, CT, L)
    assert_equal(module(tokens), [literal_transformer(module, t, scale_logits) for t in tokens])


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), None])
def test_attention_starts_spread_out(norm_cfg):
    """Weights of a new module are at most a few times those of an average."""
    torch.manual_seed(0)
    x, tokens = torch.randn(4, 256, 14, 14), torch.randn(4, 1024, 16)
    settings = dict(num_tokens=16, norm_cfg=norm_cfg, query_gain=QUERY_GAIN)
    for spread, tokenizer in (25, FilterTokenizer), (2, RecurrentTokenizer):
        attention = tokenizer(256, 1024, **settings).attention(x, tokens)
        assert attention.max() * attention.shape[-1] < spread
    for scale_logits in True, False:
        filters = FilterTokenizer(256, 1024, scale_logits=scale_logits, **settings)
        assert 0.8 < filters.logits(x, None).std() < 1.2
    transformer = TokenTransformer(1024, norm_cfg=norm_cfg, query_gain=QUERY_GAIN)
    related = transformer.related(tokens)
    torch.testing.assert_close(
        related, tokens.mean(2, keepdim=True).expand_as(related), rtol=0, atol=0.3)


def test_attention_starts_wide_in_the_backbone_and_narrow_in_the_neck():
    """What was measured to be better for each (docs/vt.md)."""
    module = small(out_type='tokens').vt[1]
    layer = neck(num_layers=2, norm_cfg=dict(type='BN')).layers
    for gain, query in [
        (QUERY_GAIN, module.tokenizer.query),
        (QUERY_GAIN, module.transformer.query),
        (1, layer[0].transformer.query),
        (1, layer[0].projectors[0].query),
        (1, layer[1].tokenizers[0].query),
    ]:
        assert torch.all(query.norm.weight == gain)
    assert small().vt[0].tokenizer.scale < 1 and layer[1].tokenizers[0].scale < 1
    assert all(tokenizer.scale == 1 for tokenizer in layer[0].tokenizers)


def test_tokens_without_interaction_equal_literal_loops():
    module = build(PointwiseTokens, CT, norm_cfg=None)
    tokens = random(2, CT, L)
    assert_equal(module(tokens), [
        tensor([[a + max(0, b) for a, b in zip(t, literal_layer(module.fc, t))]
                      for t in columns(image)]).T
        for image in tokens])


@pytest.mark.parametrize('out_channels', [C, CT, 32])
@pytest.mark.parametrize('num_heads, scale_logits', [(1, True), (2, True), (2, False)])
def test_projector_equals_literal_loops(out_channels, num_heads, scale_logits):
    module = build(Projector, C, out_channels, CT, num_heads=num_heads, group_width=4,
                   scale_logits=scale_logits, norm_cfg=None)
    x, tokens = random(2, C, H, W), random(2, CT, L)
    assert module.query.conv.groups > 1
    assert isinstance(module.lateral, nn.Identity) == (out_channels == C)
    assert isinstance(module.value, nn.Identity) == (out_channels == CT)
    assert_equal(module(x, tokens), [
        literal_projector(module, *pair, scale_logits) for pair in zip(x, tokens)])


# Published sizes.


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def classifier(depth: int, **settings) -> nn.Module:
    settings = dict(out_indices=(3,), out_type='tokens', token_norm=False) | settings
    return nn.Sequential(VTResNet(depth, **settings), VTClsHead(1000, 1024)).eval()


NONE, ONCE, POOL = dict(interaction='none'), dict(recurrent=False), dict(tokenizer='pooling')
NO_PROJECTOR = dict(with_projector=False)
# Depth, setting, our parameters, our multiply-adds in millions, the paper's of both (Tables 2-8).
SIZES = [
    (18, {}, 11_643_432, 1579, 11.6, 1579),
    (18, NONE, 8_497_704, 1528, 8.5, 1528),
    (18, ONCE, 11_094_568, 1564, 11.1, 1564),
    (18, POOL, 11_033_128, 1550, 11.0, 1550),
    (18, NO_PROJECTOR, 9_333_288, 1497, 9.3, 1497),
    (18, dict(num_tokens=32), 11_647_528, 1711, 11.6, 1711),
    (18, dict(num_tokens=64), 11_655_720, 1980, 11.6, 1979),
    (18, dict(value_conv=False), 11_594_280, 1569, 11.7, 1569),
    (34, {}, 21_847_848, 3299, 21.8, 3299),
    (34, NONE, 17_129_256, 3222, 17.1, 3222),
    (34, ONCE, 20_750_120, 3269, 20.7, None),  # the paper's 3369 must be a misprint
    (34, POOL, 20_647_720, 3245, 20.6, 3246),
    (34, NO_PROJECTOR, 17_342_248, 3158, 17.3, 3158),
    (34, dict(num_tokens=32), 21_851_944, 3514, 21.8, 3514),
    (34, dict(num_tokens=64), 21_860_136, 3951, 21.8, 3951),
    (50, {}, 22_102_056, 3595, None, None),  # the paper's 21.4 M and 3412 M have another structure
    (101, {}, 41_094_184, 7307, None, None),
]


@pytest.mark.parametrize('depth, setting, parameters, macs, paper_parameters, paper_macs', SIZES)
def test_sizes_are_those_of_the_papers_tables(
        depth, setting, parameters, macs, paper_parameters, paper_macs):
    with torch.device('meta'):
        model = classifier(depth, **setting)
    count, multiply_adds = num_parameters(model), count_macs(model, 224) / 1e6
    assert count == parameters
    assert abs(multiply_adds - macs) <= 0.7
    if paper_parameters:
        assert abs(count / 1e6 - paper_parameters) <= 0.11
    if paper_macs:
        assert abs(multiply_adds - paper_macs) <= 1


@pytest.mark.parametrize('depth, with_norms, for_maps, macs', [
    (18, 11_667_496, 12_724_776, 1605), (34, 21_886_248, 22_929_192, 3325),
    (50, 22_143_016, 23_216_168, 3631), (101, 41_135_144, 42_208_296, 7343)])
def test_norms_and_the_last_projector_add_what_they_should(depth, with_norms, for_maps, macs):
    head = 1024 * 1000 + 1000
    with torch.device('meta'):
        normed, dense = classifier(depth, token_norm=True), VTResNet(depth, token_norm=False)
    assert num_parameters(normed) == with_norms
    assert num_parameters(dense) + head == for_maps
    assert abs((count_macs(dense, 224) + head) / 1e6 - macs) <= 0.7


def test_clustering_costs_what_the_paper_says():
    model = classifier(18, tokenizer='clustering')
    assert abs(num_parameters(model) / 1e6 - 11.6) <= 0.05
    assert abs(count_macs(model, 224) / 1e6 - 1580) <= 0.005 * 1580


def pyramid(height: int, width: int, channels=RESNET_50, batch: int = 1) -> list[torch.Tensor]:
    return [torch.randn(batch, c, -(-height // s), -(-width // s))
            for c, s in zip(channels, (4, 8, 16, 32))]


class NeckAlone(nn.Module):
    """A neck on the maps that ResNet-50 makes of an image."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, image):
        return self.neck([x.to(image) for x in pyramid(*image.shape[2:])])


@pytest.mark.parametrize('size, ours, fpn', [
    ((800, 1216), (8.35, 8.65), 55.1), ((473, 473), (2.0, 2.1), 12.9)])
def test_vt_fpn_costs_a_sixth_of_fpn(size, ours, fpn):
    from mmdet.models.necks import FPN
    with torch.device('meta'):
        necks = VTFPN(RESNET_50, 256, num_outs=4), FPN(list(RESNET_50), 256, 4)
    macs, fpn_macs = (count_macs(NeckAlone(neck), size) / 1e9 for neck in necks)
    assert ours[0] <= macs <= ours[1]
    assert abs(fpn_macs - fpn) < 0.05
    assert fpn_macs / macs > 6.1


# The backbone; what all backbones promise is in test_backbone_contract.py.


def small(**settings) -> VTResNet:
    torch.manual_seed(0)
    return VTResNet(**SMALL | dict(zero_init_residual=False) | settings)


OPTIONS = [
    dict(tokenizer='pooling'), dict(tokenizer='clustering'), dict(recurrent=False),
    dict(tokenizer='pooling', recurrent=True), dict(interaction='none'), dict(num_modules=1),
    dict(num_modules=4), dict(num_heads=4), dict(value_conv=False), dict(token_norm=False),
    dict(scale_logits=False), dict(num_tokens=1), dict(num_tokens=7), dict(pool_last=False),
    dict(with_projector=False, out_type='tokens'), dict(norm_cfg=dict(type='GN', num_groups=2)),
    dict(resnet=dict(deep_stem=True, avg_down=True)), dict(token_channels=64), dict(depth=50),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_every_option_trains_all_its_parameters_at_any_size(options):
    backbone = small(**options).train()
    for size in ((33, 70), (64, 64), (2, 3)):
        outputs = backbone(torch.randn(2, 3, *size))
        assert [x.shape[1] for x in outputs[:3]] == list(backbone.out_channels[:3])
    outputs = backbone(torch.randn(2, 3, 64, 96))
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or options.get('num_tokens') == 1, name


def test_last_map_is_pooled_to_stride_32_or_left_at_16():
    pooled, native = small().eval(), small(pool_last=False).eval()
    assert pooled.out_strides == (4, 8, 16, 32) and native.out_strides == (4, 8, 16, 16)
    native.load_state_dict(pooled.state_dict())
    image = torch.randn(1, 3, 97, 50)
    with torch.no_grad():
        small_map, large_map = pooled(image)[-1], native(image)[-1]
    assert large_map.shape[2:] == (7, 4) and small_map.shape[2:] == (4, 2)
    assert torch.equal(small_map[0, :, 3, 1], large_map[0, :, 6:, 2:].amax((1, 2)))


@pytest.mark.parametrize('size', [(64, 64), (33, 130)])
def test_tokens_come_out_as_batch_tokens_channels(size):
    backbone = small(out_indices=(1, 3), out_type='tokens').eval()
    fmap, tokens = backbone(torch.randn(2, 3, *size))
    assert fmap.ndim == 4 and tokens.shape == (2, 4, 32) and backbone.out_channels == (16, 32)
    assert backbone.vt[-1].projector is None and small().vt[-1].projector is not None


def test_only_the_first_module_is_not_recurrent():
    kinds = [type(module.tokenizer) for module in small(depth=34).vt]
    assert kinds == [FilterTokenizer, RecurrentTokenizer, RecurrentTokenizer]
    once = small(with_projector=False, out_type='tokens')
    assert [module.tokenizer is None for module in once.vt] == [False, True]


def test_residual_branches_can_start_at_zero():
    backbone = small(depth=50, zero_init_residual=True, token_channels=64, pool_last=False)
    backbone.init_weights()
    *_, before, after = backbone.eval()(torch.randn(1, 3, 64, 64))
    assert torch.equal(before, after)
    assert not backbone.resnet.layer1[0].norm3.weight.any()


def test_a_resnet_for_small_images_keeps_the_resolution():
    backbone = small(resnet=dict(type='mmpretrain.ResNet_CIFAR')).eval()
    assert backbone.out_strides == (1, 2, 4, 8)
    assert [x.shape[2] for x in backbone(torch.randn(1, 3, 32, 32))] == [32, 16, 8, 4]


def test_mmdet_mmpretrain_and_mmseg_give_the_same_backbone():
    image, outputs, states = torch.randn(1, 3, 64, 64), [], []
    for package in ('mmdet', 'mmpretrain', 'mmseg'):
        backbone = small(resnet=dict(type=f'{package}.ResNet')).eval()
        backbone.load_state_dict(states[0] if states else backbone.state_dict())
        states.append(backbone.state_dict())
        outputs.append(backbone(image)[-1])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_without_a_package_that_has_a_resnet_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr('xvit_mm.models.backbones.vt_resnet.find_spec', lambda name: None)
    with pytest.raises(ImportError, match='mmdet, mmpretrain, mmseg.*pip install'):
        small()


@pytest.mark.parametrize('wrong, message', [
    (dict(depth=152), 'depth=152.*18, 34, 50, 101'),
    (dict(tokenizer='recurrent'), "tokenizer='recurrent'.*'filter', 'pooling', 'clustering'"),
    (dict(interaction='convolution'), "interaction='convolution'.*'graph'"),
    (dict(out_type='cls_token'), "out_type='cls_token'.*'featmap', 'tokens'"),
    (dict(out_type='tokens', out_indices=(0, 1)), 'out_indices must contain 3'),
    (dict(with_projector=False), 'with_projector=False gives tokens only'),
    (dict(num_tokens=0), 'num_tokens=0.*at least 1'),
    (dict(token_channels=30), 'token_channels=30.*multiple of 4'),
    (dict(num_heads=3, token_channels=24), 'num_heads=3.*divide the 64 channels'),
    (dict(drop_path_rate=1.), r'drop_path_rate=1.0.*\[0, 1\)'),
    (dict(resnet=dict(base_channels=4)), 'base_channels cannot be set there'),
])
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        small(**wrong)


# Weights.


def torchvision_resnet(depth: int) -> nn.Module:
    torch.manual_seed(1)
    model = getattr(torchvision.models, f'resnet{depth}')().eval()
    for name, buffer in model.named_buffers():
        if name.endswith(('mean', 'var')):
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def torchvision_maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x, maps = model.maxpool(model.relu(model.bn1(model.conv1(x)))), []
    for layer in (model.layer1, model.layer2, model.layer3):
        maps.append(x := layer(x))
    return maps


@pytest.mark.parametrize('depth, tensors', [(18, 90), (50, 258)])
def test_torchvision_weights_load_and_give_torchvisions_maps(depth, tensors):
    official = torchvision_resnet(depth)
    backbone = VTResNet(depth).eval()
    report = load_official(backbone, official.state_dict())
    assert report.backbone_tensors == len(report.loaded) == tensors
    assert all(name.startswith('vt.') for name in report.new) and not report.missing
    assert {name.split('.')[0] for name in report.left_out} == {'layer4', 'fc'}
    assert not report.unexpected
    assert f'{tensors} of {tensors} backbone tensors loaded' in str(report)
    image = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), torchvision_maps(official, image)):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_files_that_do_not_count_batches_load():
    weights = {n: t for n, t in torchvision_resnet(18).state_dict().items()
               if 'num_batches' not in n}
    assert load_official(VTResNet(18), weights).backbone_tensors == 75


def test_pretrained_init_keeps_the_start_of_the_visual_tokens(tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save(torchvision_resnet(18).state_dict(), path)
    backbone = VTResNet(18, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = copy.deepcopy(backbone.vt.state_dict())
    backbone.init_weights()
    assert torch.equal(backbone.resnet.conv1.weight, torch.load(path)['conv1.weight'])
    assert all(torch.equal(t, before[n]) for n, t in backbone.vt.state_dict().items())


def test_a_detectors_resnet_checkpoint_loads_into_a_detector_with_vt():
    official = torchvision_resnet(18)
    state = {f'backbone.{n}': t for n, t in official.state_dict().items()}
    detector = nn.Module()
    detector.backbone = VTResNet(18)
    missing, unexpected = detector.load_state_dict(state, strict=False)
    assert all(name.startswith('backbone.vt.') for name in missing) and not unexpected
    assert torch.equal(detector.backbone.resnet.layer3[1].conv2.weight,
                       official.layer3[1].conv2.weight)


def test_a_classifiers_weights_load_into_a_dense_backbone_and_back():
    cls, dense = small(out_indices=(3,), out_type='tokens'), small()
    torch.nn.init.normal_(cls.vt[0].tokenizer.coefficients.weight)
    report = load_official(dense, cls.state_dict())
    assert report.new and all(name.startswith('vt.1.projector.') for name in report.new)
    assert torch.equal(dense.vt[0].tokenizer.coefficients.weight,
                       cls.vt[0].tokenizer.coefficients.weight)
    back = load_official(cls, dense.state_dict())
    assert {n.split('.')[2] for n in back.left_out} == {'projector'} and not back.new
    whole = {f'backbone.{n}': t for n, t in cls.state_dict().items()}
    assert len(load_official(dense, whole).loaded) == len(report.loaded)


@pytest.mark.parametrize('other', [
    dict(token_norm=False), dict(recurrent=False), dict(num_modules=1), dict(num_modules=3),
    dict(tokenizer='clustering'), dict(interaction='none'),
    dict(out_type='tokens', with_projector=False),
], ids=str)
def test_own_weights_of_other_visual_tokens_are_refused(other):
    source, target = small(), small(**other)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError, match='Nothing was loaded'):
        load_official(target, source.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    with pytest.raises(CheckpointError, match='Nothing was loaded'):
        load_official(source, target.state_dict())


def test_report_counts_every_own_tensor_of_the_visual_tokens():
    source, target = small(), small()
    total = len(source.state_dict())
    assert f'{total} of {total} backbone tensors loaded' in str(
        load_official(target, source.state_dict()))
    maps_only = small(out_indices=(0, 1, 2))
    assert all(n.startswith('vt.') for n in load_official(maps_only, source.state_dict()).left_out)
    report = load_official(target, maps_only.state_dict())
    assert report.backbone_tensors == len(report.loaded) == len(maps_only.state_dict())
    assert set(report.new) == {n for n in target.state_dict() if n.startswith('vt.')}


def test_fewer_stages_take_what_they_need_from_a_whole_file():
    report = load_official(VTResNet(18, out_indices=(1,)), torchvision_resnet(18).state_dict())
    assert report.backbone_tensors == 60
    assert 'of stages that out_indices does not need' in str(report)


def test_weights_of_another_depth_are_refused_by_name():
    with pytest.raises(CheckpointError, match='VTResNet 34, but the backbone is VTResNet 18'):
        load_official(VTResNet(18), torchvision_resnet(34).state_dict())


# The neck.

CHANNELS = (8, 16, 32, 64)


def neck(**settings) -> VTFPN:
    torch.manual_seed(0)
    settings = dict(num_outs=4, token_channels=32, zero_init_residual=False) | settings
    return VTFPN(CHANNELS, 16, **settings)


@pytest.mark.parametrize('settings', [
    {}, dict(num_layers=3), dict(with_top_down=True), dict(num_tokens=(16, 8, 4, 2)),
    dict(num_heads=2), dict(norm_cfg=None), dict(num_outs=6), dict(token_channels=16),
    dict(num_outs=5, start_level=1, add_extra_convs=True),
    dict(num_outs=5, start_level=1, add_extra_convs='on_output', relu_before_extra_convs=True),
    dict(num_outs=6, add_extra_convs='on_lateral'), dict(num_outs=2, start_level=1, end_level=2),
    dict(num_outs=3, start_level=1, norm_cfg=dict(type='GN', num_groups=4)),
], ids=str)
def test_neck_has_the_shapes_of_fpn_and_trains_all_its_parameters(settings):
    from mmdet.models.necks import FPN
    vt_fpn = neck(**settings).train()
    names = 'num_outs start_level end_level add_extra_convs relu_before_extra_convs'.split()
    fpn = FPN(list(CHANNELS), 16, **dict(num_outs=4) | {
        n: v for n, v in settings.items() if n in names})
    for size in ((64, 96), (97, 50), (33, 33)):
        maps = pyramid(*size, CHANNELS, batch=2)
        outputs = vt_fpn(maps)
        assert isinstance(outputs, tuple)
        assert [x.shape for x in outputs] == [x.shape for x in fpn(maps)]
        assert all(x.is_contiguous() for x in outputs)
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    without = [n for n, p in vt_fpn.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_neck_exchanges_information_between_levels_and_not_between_images():
    vt_fpn = neck().eval()
    maps = pyramid(64, 96, CHANNELS, batch=2)
    changed = [*maps[:3], maps[3] + torch.tensor([1., 0.]).view(2, 1, 1, 1)]
    with torch.no_grad():
        for before, after in zip(vt_fpn(maps), vt_fpn(changed)):
            assert (before[0] - after[0]).abs().max() > 1e-6
            torch.testing.assert_close(before[1], after[1])
        for together, alone in zip(vt_fpn(maps), vt_fpn([x[1:] for x in maps])):
            torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_projectors_of_the_neck_can_start_at_zero():
    vt_fpn = neck(zero_init_residual=True).eval()
    maps = pyramid(64, 96, CHANNELS)
    for lateral, x, out in zip(vt_fpn.lateral_convs, maps, vt_fpn(maps)):
        assert torch.equal(lateral(x), out)


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF])
@pytest.mark.parametrize('scale', [1, 10])
def test_neck_is_finite_in_low_precision(dtype, scale):
    vt_fpn = neck(num_layers=2).eval()
    maps = [scale * x for x in pyramid(300, 500, CHANNELS)]
    low = copy.deepcopy(vt_fpn).to(dtype)
    outputs = low([x.to(dtype) for x in maps])
    assert all(x.isfinite().all() for x in outputs)
    sum(x.float().mean() for x in outputs).backward()
    assert all(p.grad.isfinite().all() for p in low.parameters())
    if scale == 1:
        for exact, x in zip(vt_fpn(maps), outputs):
            assert (exact - x).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize('wrong, message', [
    (dict(num_outs=3), 'num_outs=3.*4 outputs'),
    (dict(start_level=4), 'start_level=4'),
    (dict(end_level=7), 'end_level=7'),
    (dict(num_tokens=(8, 8)), r'num_tokens=\(8, 8\).*4 levels'),
    (dict(add_extra_convs='on_top'), "add_extra_convs='on_top'.*on_input"),
    (dict(num_layers=0), 'num_layers=0: must be at least 1'),
    (dict(num_heads=0), 'num_heads=0: both must be at least 1'),
    (dict(token_channels=30), 'token_channels=30.*multiple of 4'),
    (dict(num_heads=3, token_channels=24), 'num_heads=3.*divide the 16 channels'),
])
def test_settings_of_the_neck_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        neck(**wrong)


def test_neck_refuses_another_number_of_maps():
    with pytest.raises(ValueError, match='3 maps were given'):
        neck()(pyramid(64, 64, CHANNELS)[:3])


BACKBONE = dict(type='xvit_mm.VTResNet', **SMALL)
TO_NECK = dict(type='xvit_mm.VTFPN', in_channels=[8, 16, 32, 64], out_channels=16,
               token_channels=32, num_tokens=4)


def test_retinanet_with_vt_backbone_and_neck_takes_a_loss_step():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    model = MODELS.build(dict(
        type='mmdet.RetinaNet', data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
        backbone=BACKBONE,
        neck=dict(TO_NECK, num_outs=5, start_level=1, add_extra_convs='on_input'),
        bbox_head=dict(
            type='mmdet.RetinaHead', num_classes=3, in_channels=16, feat_channels=16,
            stacked_convs=1,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='mmdet.FocalLoss'), loss_bbox=dict(type='mmdet.L1Loss')),
        train_cfg=dict(
            assigner=dict(type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4),
            sampler=dict(type='mmdet.PseudoSampler'), allowed_border=-1, pos_weight=-1),
        test_cfg=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)))
    sample = DetDataSample(
        metainfo=dict(img_shape=(96, 128), pad_shape=(96, 128), batch_input_shape=(96, 128)),
        gt_instances=InstanceData(
            bboxes=torch.tensor([[8., 8., 70., 80.]]), labels=torch.tensor([1])))
    losses = model.loss(torch.randn(2, 3, 96, 128), [sample, sample])
    sum(losses['loss_cls'] + losses['loss_bbox']).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_segmentor_with_vt_backbone_neck_and_semantic_fpn_takes_a_loss_step():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    model = MODELS.build(dict(
        type='mmseg.EncoderDecoder', data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
        backbone=BACKBONE, neck=dict(TO_NECK, num_outs=4),
        decode_head=dict(
            type='mmseg.FPNHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32], channels=16, num_classes=3,
            norm_cfg=dict(type='BN')),
        train_cfg=dict(), test_cfg=dict(mode='whole')))
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 70, 96))))
    losses = model.loss(torch.randn(2, 3, 70, 96), [sample, sample])
    losses['decode.loss_ce'].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if 'conv_seg' not in n)


# Seeing tokens.


def test_token_attention_is_a_distribution_over_the_pixels_of_stride_16():
    backbone = small(depth=34).eval()
    attentions = backbone.token_attention(torch.randn(2, 3, 97, 50))
    assert [x.shape for x in attentions] == [(2, 4, 7, 4)] * 3
    for attention in attentions:
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 4))
        assert attention.min() >= 0


def test_token_attention_is_what_the_tokens_were_made_with():
    backbone = small(out_indices=(2, 3), value_conv=False, token_norm=False).eval()
    image = torch.randn(1, 3, 64, 96)
    seen = []
    backbone.vt[0].tokenizer.project.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        fmap = backbone(image)[0]
    attention = backbone.token_attention(image)[0]
    torch.testing.assert_close(seen[0], torch.einsum('bchw,blhw->bcl', fmap, attention))


def test_pooled_tokens_have_no_attention_to_show():
    with pytest.raises(ValueError, match='pooling tokenizer has no attention'):
        small(tokenizer='pooling').token_attention(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match='builds no VT modules'):
        small(out_indices=(0,)).token_attention(torch.randn(1, 3, 64, 64))


def test_tokens_are_drawn_in_rows_where_they_look():
    image = np.full((32, 48, 3), 128, np.uint8)
    attention = torch.zeros(6, 2, 3)
    for i in range(6):
        attention[i, i // 3, i % 3] = 1
    picture = draw_tokens(image, attention, columns=4)
    assert picture.shape == (2 * 32, 4 * 48, 3) and picture.dtype == np.uint8
    red = picture[..., 0].astype(int) - picture[..., 2]
    for i in range(6):
        tile = red[i // 4 * 32:, i % 4 * 48:][:32, :48]
        y, x = np.unravel_index(tile.argmax(), tile.shape)
        assert (y // 16, x // 16) == (i // 3, i % 3)
    assert not picture[32:, 2 * 48:].any()
    with pytest.raises(ValueError, match=r'give \[L, h, w\]'):
        draw_tokens(image, attention[None])
