"""Visual tokens: the operators against literal loops in float64, and how attention starts."""
import math

import pytest
import torch
from torch import nn

from xvit_mm.models.layers import (ClusteringTokenizer, FilterTokenizer, GraphConvolution,
                                   PointwiseTokens, PoolingTokenizer, Projector,
                                   RecurrentTokenizer, TokenTransformer, visual_tokens)

C, CT, L, H, W = 8, 16, 6, 3, 5
TOKENIZING = dict(num_tokens=L, norm_cfg=None)
QUERY_GAIN = 0.1


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
    related = transformer.relate(tokens)
    torch.testing.assert_close(
        related, tokens.mean(2, keepdim=True).expand_as(related), rtol=0, atol=0.3)


@pytest.mark.parametrize('optimizer, ratio', [(torch.optim.SGD, C), (torch.optim.Adam, C**0.5)])
def test_scaled_filters_start_alike_and_learn_more_slowly(optimizer, ratio):
    """A step moves the logits C times less with SGD, sqrt(C) times less with Adam."""
    x, change = random(2, C, H, W), []
    weights = random(L, C, 1, 1)
    for scale_logits, factor in (True, C**0.5), (False, 1):
        module = build(FilterTokenizer, C, CT, scale_logits=scale_logits, **TOKENIZING)
        module.coefficients.weight.data.copy_(weights * factor)
        before = module.logits(x, None).detach()
        module(x).square().sum().backward()
        settings = dict(eps=0.) if optimizer is torch.optim.Adam else {}
        optimizer([module.coefficients.weight], lr=1e-3, **settings).step()
        change.append((before, module.logits(x, None).detach() - before))
    (start, slow), (same_start, fast) = change
    torch.testing.assert_close(start, same_start)
    torch.testing.assert_close(slow * ratio, fast)


def test_tokens_without_interaction_equal_literal_loops():
    module = build(PointwiseTokens, CT, norm_cfg=None)
    tokens = random(2, CT, L)
    assert_equal(module(tokens), [
        tensor([[a + max(0, b) for a, b in zip(t, literal_layer(module.fc, t))]
                      for t in columns(image)]).T
        for image in tokens])


def test_graph_convolution_equals_literal_loops():
    module = build(GraphConvolution, CT, num_tokens=L, norm_cfg=None)
    graph, expected = module.graph.tolist(), []
    for image in (tokens := random(2, CT, L)):
        vectors = columns(image)
        summed = [[a + b for a, b in zip(vectors[i], mixed(graph[i], vectors))] for i in range(L)]
        expected.append(tensor([
            [a + max(0, b) for a, b in zip(vectors[i], literal_layer(module.fc, summed[i]))]
            for i in range(L)]).T)
    assert_equal(module(tokens), expected)


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
