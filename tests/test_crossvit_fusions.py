"""The four fusions of CrossViT against literal formulas."""
import math
from collections.abc import Callable

import pytest
import torch
from crossvit_models import plain_cross_attention, randomise
from torch import Tensor, nn

from xvit_mm.models.layers import FUSIONS, CrossAttention


def literal_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean()
    return centred / math.sqrt(centred.square().mean().item() + 1e-6) * norm.weight + norm.bias


def literal_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    return linear.weight @ x + linear.bias


def literal_projection(x: Tensor, layers: nn.Sequential) -> Tensor:
    norm, _, linear = layers
    x = literal_norm(x, norm)
    return literal_linear(0.5 * x * (1 + torch.erf(x / math.sqrt(2))), linear)


def literal_attention(
    query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int
) -> Tensor:
    width = len(query) // heads
    out = torch.zeros_like(query)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = [math.exp((query[part] @ k[part]).item() * width**-0.5) for k in keys]
        for score, v in zip(scores, values):
            out[part] += score / sum(scores) * v[part]
    return out


def literal_cross_attention(x: list[Tensor], attn: CrossAttention, heads: int) -> Tensor:
    query = literal_linear(x[0], attn.wq)
    keys = [literal_linear(token, attn.wk) for token in x]
    values = [literal_linear(token, attn.wv) for token in x]
    return literal_linear(literal_attention(query, keys, values, heads), attn.proj)


def literal_cross(fusion, tokens, heads, grids):
    outputs = []
    for i in (0, 1):
        own, other = tokens[i], tokens[1 - i]
        x = [literal_projection(own[0], fusion.project[i]), *other[1:]]
        attended = literal_cross_attention(
            [literal_norm(t, fusion.norms[i]) for t in x], fusion.attns[i], heads)
        outputs.append([literal_projection(x[0] + attended, fusion.revert[i]), *own[1:]])
    return outputs


def literal_all(fusion, tokens, heads, grids):
    y = [literal_projection(t, fusion.project[i]) for i in (0, 1) for t in tokens[i]]
    qkv = [literal_linear(literal_norm(t, fusion.norm), fusion.attn.qkv).chunk(3) for t in y]
    keys, values = [k for _, k, _ in qkv], [v for _, _, v in qkv]
    o = [t + literal_linear(literal_attention(q, keys, values, heads), fusion.attn.proj)
         for t, (q, _, _) in zip(y, qkv)]
    border = len(tokens[0])
    return [[literal_projection(t, fusion.revert[0]) for t in o[:border]],
            [literal_projection(t, fusion.revert[1]) for t in o[border:]]]


def literal_class_token(fusion, tokens, heads, grids):
    total = sum(literal_projection(tokens[i][0], fusion.project_classes[i]) for i in (0, 1))
    return [[literal_projection(total, fusion.revert_classes[i]), *tokens[i][1:]] for i in (0, 1)]


def literal_bilinear(patches: list[Tensor], source, target) -> list[Tensor]:
    def taps(i: int, n: int, m: int) -> list[tuple[int, float]]:
        place = max((i + 0.5) * n / m - 0.5, 0)
        low = int(place)
        return [(low, 1 - (place - low)), (min(low + 1, n - 1), place - low)]
    return [sum(wr * wc * patches[r * source[1] + c]
                for r, wr in taps(i, source[0], target[0])
                for c, wc in taps(j, source[1], target[1]))
            for i in range(target[0]) for j in range(target[1])]


def literal_pairwise(fusion, tokens, heads, grids):
    small = tokens[0]
    large = [tokens[1][0], *literal_bilinear(tokens[1][1:], grids[1], grids[0])]
    total = [literal_projection(s, fusion.project_pairs[0])
             + literal_projection(t, fusion.project_pairs[1]) for s, t in zip(small, large)]
    back = [total[0], *literal_bilinear(total[1:], grids[0], grids[1])]
    return [[literal_projection(t, fusion.revert_pairs[0]) for t in total],
            [literal_projection(t, fusion.revert_pairs[1]) for t in back]]


ORACLES: dict[str, Callable] = dict(
    cross=literal_cross, all=literal_all, class_token=literal_class_token,
    pairwise=literal_pairwise)


@pytest.mark.parametrize('name', FUSIONS)
def test_fusion_is_the_papers_formula(name):
    widths, heads, grids = (6, 12), 3, ((3, 5), (2, 4))
    fusion = randomise(FUSIONS[name](widths, heads, drop_path=0.1).double()).eval()
    tokens = [torch.randn(2, 1 + h * w, c, dtype=torch.float64, generator=torch.manual_seed(i))
              for i, ((h, w), c) in enumerate(zip(grids, widths))]
    with torch.no_grad():
        outputs = fusion(tokens, grids)
        for b in range(2):
            literal = ORACLES[name](fusion, [list(x[b]) for x in tokens], heads, grids)
            for ours, theirs in zip(outputs, literal, strict=True):
                torch.testing.assert_close(ours[b], torch.stack(theirs), rtol=1e-10, atol=1e-10)


def test_skipping_keys_and_values_changes_neither_result_nor_gradients():
    attn = randomise(CrossAttention(48, 6).double())
    x = torch.randn(3, 50, 48, dtype=torch.float64, requires_grad=True)
    results = []
    for forward in (attn, lambda x: plain_cross_attention(attn, x)):
        out = forward(x)
        wanted = (x, *attn.parameters())
        results.append((out, *torch.autograd.grad(out.square().sum(), wanted)))
    for ours, plain in zip(*results):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_skipping_keys_and_values_costs_no_precision_in_float32():
    attn = randomise(CrossAttention(384, 6)).eval()
    x = torch.randn(2, 401, 384)
    with torch.no_grad():
        difference = (attn(x) - plain_cross_attention(attn, x)).abs().max()
    assert difference < 1e-5
