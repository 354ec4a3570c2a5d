"""Visual tokens (VT, arXiv 2006.03677 v4): tokenizers, token transformer, projector.

A tokenizer summarises a map X [B, C, H, W] in L tokens T, a transformer relates the tokens, and a
projector writes them back to the map. Softmax runs over the pixels in a tokenizer and over the
tokens in the other two, so nothing depends on the size of the map. Maps and tokens keep their
channels in front, [B, C, H, W] and [B, C, L]: a large map is never transposed.

The paper prints formulas but no code; docs/vt.md has the source of each reading in one table. In
the whole file:
- Point-wise layers have no bias. A norm follows each, if `norm_cfg` says so; only the coefficients
  of the filter tokenizer have none.
- Grouped layers on maps have 64 channels per group.
- `scale_logits` divides the logits of an attention by sqrt(d), which the formulas do not.
- `query_gain`: queries start at this multiple of the size of what they read. Where it is small,
  attention starts almost as an average.
"""
from math import isqrt, lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .drop_path import DropPath
from .plain import is_plain
from .pointwise import (NormCfg, add_weighted_sum, apply_filters, map_layer, product_logits,
                        token_layer, weighted_sum)

GROUP_WIDTH = 64
KMEANS_STEPS = 3


class Tokenizer(nn.Module):
    """Base of the tokenizers: a map [B, C, H, W] to tokens [B, CT, L].

    `T = A^T V`, with A the attention and V a grouped projection of the map; without
    `value_conv` V is the map itself, as in the formula. The tokens are then projected from C
    to CT channels unless the two are equal. All kinds take the same arguments, and the tokens
    of the module before if there is one.
    """

    def __init__(
        self,
        in_channels: int,
        token_channels: int,
        *,
        num_tokens: int,
        norm_cfg: NormCfg,
        value_conv: bool = True,
        scale_logits: bool = True,
        query_gain: float = 1.,
    ) -> None:
        super().__init__()
        self.num_tokens, self.query_gain = num_tokens, query_gain
        self.scale = in_channels**-0.5 if scale_logits else 1.
        self.value = nn.Identity()
        if value_conv:
            self.value = map_layer(
                in_channels, in_channels, norm_cfg=norm_cfg, group_width=GROUP_WIDTH)
        self.project = nn.Identity()
        if in_channels != token_channels:
            self.project = token_layer(in_channels, token_channels, norm_cfg=norm_cfg)

    def attention(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Weights of the pixels [B, L, H * W] that sum to 1 for every token."""
        return self.logits(x, tokens).softmax(dim=-1)

    def logits(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        """The attention [B, L, H * W] before its softmax over the pixels."""
        raise NotImplementedError

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        return self.project(weighted_sum(self.value(x), self.attention(x, tokens)))


class FilterTokenizer(Tokenizer):
    """`A = softmax_HW(X W_A)` with one learned filter per token (eq. 1).

    Filters start so that the logits are as large as the pixels, scaled or not. `scale_logits`
    therefore changes how fast they learn, not where they start: filters that are sqrt(C) times as
    large and then divided by sqrt(C) move their logits C times less by a step of SGD, and sqrt(C)
    times less by one of Adam, whose steps do not depend on the size of the gradient.
    """

    def __init__(self, in_channels: int, token_channels: int, **options: Any) -> None:
        super().__init__(in_channels, token_channels, **options)
        self.coefficients = nn.Conv2d(in_channels, self.num_tokens, 1, bias=False)
        nn.init.normal_(self.coefficients.weight, std=in_channels**-0.5 / self.scale)

    def logits(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        if not is_plain(self.coefficients, nn.Conv2d):
            return self.coefficients(x).flatten(2) * self.scale
        filters = self.coefficients.weight.flatten(1).T * self.scale
        return apply_filters(filters.expand(x.shape[0], -1, -1), x)


class RecurrentTokenizer(Tokenizer):
    """`A = softmax_HW((X W_K) W_R^T)`, `W_R = T W_{T->R}`: earlier tokens are the filters (eq. 2).

    W_K is a grouped projection of the map.
    """

    def __init__(self, in_channels: int, token_channels: int, **options: Any) -> None:
        super().__init__(in_channels, token_channels, **options)
        norm_cfg = options['norm_cfg']
        self.key = map_layer(in_channels, in_channels, norm_cfg=norm_cfg, group_width=GROUP_WIDTH)
        self.query = token_layer(
            token_channels, in_channels, norm_cfg=norm_cfg, gain=self.query_gain)

    def logits(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return product_logits(self.query(tokens) * self.scale, self.key, x)


class PoolingTokenizer(Tokenizer):
    """Averages over a grid of windows, as square as L allows; no value projection."""

    def __init__(self, in_channels: int, token_channels: int, **options: Any) -> None:
        super().__init__(in_channels, token_channels, **options | dict(value_conv=False))

    def attention(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Refused.

        Raises:
            ValueError: always; these tokens have fixed windows instead.
        """
        raise ValueError(
            'the pooling tokenizer has no attention: its tokens are averages over a fixed grid; '
            "use tokenizer='filter' or 'clustering'")

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        return self.project(_pool(x, self.num_tokens))


class ClusteringTokenizer(Tokenizer):
    """`A = softmax_HW(X C^T)`: centroids C of the pixels are the filters (appendix C).

    Pixels and seeds, the averages over a grid of windows, have unit length; a few steps of Lloyd's
    k-means move the seeds. The centroids pass no gradient, and a cluster without pixels keeps
    its centroid. Unit vectors cannot make up for `scale_logits`: it leaves logits below the
    cosine times the pixel's size / sqrt(C), and attention that is nearly an average.
    """

    def logits(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        return apply_filters(self.centroids(x) * self.scale, x)

    @torch.no_grad()
    def centroids(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to unit vectors [B, C, L]."""
        # The length of a pixel underflows in half precision.
        pixels = F.normalize(x.float().flatten(2), dim=1)
        centroids = F.normalize(_pool(x.float(), self.num_tokens), dim=1)
        for _ in range(KMEANS_STEPS):
            nearest = (centroids.transpose(1, 2) @ pixels).argmax(dim=1)  # B, HW
            members = F.one_hot(nearest, self.num_tokens).to(pixels)  # B, HW, L
            sums = F.normalize(pixels @ members, dim=1)
            centroids = torch.where(members.any(dim=1)[:, None], sums, centroids)
        return centroids.to(x)


class TokenTransformer(nn.Module):
    """`T' = T + softmax_L((T K)(T Q)^T) T`, `T_out = T' + relu(T' F1) F2` (eq. 3, 4).

    Tokens [B, CT, L] to the same. The softmax runs over the columns, the queries T Q, as printed.
    K and Q have CT / 2 channels, in two groups; there is no value projection. With `num_heads`
    heads every head relates its share of the channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        norm_cfg: NormCfg,
        num_heads: int = 1,
        scale_logits: bool = True,
        query_gain: float = 1.,
        zero_init: bool = True,
        drop_path: float = 0.,
    ) -> None:
        super().__init__()
        if min(channels, num_heads) < 1 or channels % lcm(4, 2 * num_heads):
            raise ValueError(
                f'token_channels={channels}, num_heads={num_heads}: both must be at least 1, and '
                'token_channels a multiple of 4 and of 2 * num_heads')
        self.num_heads = num_heads
        self.scale = (channels // 2 // num_heads)**-0.5 if scale_logits else 1.
        self.key = token_layer(channels, channels // 2, groups=2, norm_cfg=norm_cfg)
        self.query = token_layer(
            channels, channels // 2, groups=2, norm_cfg=norm_cfg, gain=query_gain)
        self.fc1 = token_layer(channels, channels, norm_cfg=norm_cfg)
        self.fc2 = token_layer(channels, channels, norm_cfg=norm_cfg, zero_init=zero_init)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.drop_path.add(tokens, self.relate(tokens))
        return self.drop_path.add(tokens, self.fc2(F.relu(self.fc1(tokens))))

    def relate(self, tokens: Tensor) -> Tensor:
        """The attention among tokens, without the residual path: [B, CT, L] to the same."""
        key, query, value = (
            t.unflatten(1, (self.num_heads, -1))
            for t in (self.key(tokens) * self.scale, self.query(tokens), tokens))
        weights = (key.transpose(2, 3) @ query).softmax(dim=-1)  # B, heads, L, L
        return (value @ weights.transpose(2, 3)).flatten(1, 2)


class PointwiseTokens(nn.Module):
    """`T_out = T + relu(T F)`: what is left when tokens do not interact ("None", Table 5).

    Tokens [B, CT, L] to the same.
    """

    def __init__(self, channels: int, *, norm_cfg: NormCfg, drop_path: float = 0.) -> None:
        super().__init__()
        self.fc = token_layer(channels, channels, norm_cfg=norm_cfg)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop_path.add(tokens, F.relu(self.fc(self.gather(tokens))))

    def gather(self, tokens: Tensor) -> Tensor:
        """What the layer reads: [B, CT, L] to the same."""
        return tokens


class GraphConvolution(PointwiseTokens):
    """`T_out = T + relu((T + G T) F)`, a graph convolution over the tokens ("GraphConv", Table 5).

    Tokens [B, CT, L] to the same. The graph G [L, L] is learned rather than computed from the
    tokens: the published numbers leave no parameters for that.
    """

    def __init__(
        self, channels: int, *, num_tokens: int, norm_cfg: NormCfg, drop_path: float = 0.
    ) -> None:
        super().__init__(channels, norm_cfg=norm_cfg, drop_path=drop_path)
        self.graph = nn.Parameter(torch.randn(num_tokens, num_tokens) * num_tokens**-0.5)

    def gather(self, tokens: Tensor) -> Tensor:
        return tokens + tokens @ self.graph.T


class Projector(nn.Module):
    """`X_out = X + softmax_L((X W_Q)(T W_K)^T) (T W_V)` (eq. 5, which has no W_V).

    Map [B, C_in, H, W] and tokens [B, CT, L] to a map [B, C_out, H, W]. W_Q is grouped, W_V is
    the identity where CT = C_out, and X is projected first where C_in differs from C_out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        token_channels: int,
        *,
        norm_cfg: NormCfg,
        num_heads: int = 1,
        group_width: int = GROUP_WIDTH,
        scale_logits: bool = True,
        query_gain: float = 1.,
        zero_init: bool = True,
        drop_path: float = 0.,
    ) -> None:
        super().__init__()
        if num_heads < 1 or out_channels % num_heads:
            raise ValueError(
                f'num_heads={num_heads}: must be at least 1 and divide the {out_channels} channels '
                'of the map that the tokens are projected to')
        self.num_heads = num_heads
        self.scale = (out_channels // num_heads)**-0.5 if scale_logits else 1.
        self.query = map_layer(
            in_channels, out_channels, norm_cfg=norm_cfg, group_width=group_width,
            gain=query_gain)
        self.key = token_layer(token_channels, out_channels, norm_cfg=norm_cfg)
        self.value = nn.Identity()
        if token_channels != out_channels:
            self.value = token_layer(
                token_channels, out_channels, norm_cfg=norm_cfg, zero_init=zero_init)
        self.lateral = nn.Identity()
        if in_channels != out_channels:
            self.lateral = map_layer(in_channels, out_channels, norm_cfg=norm_cfg)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        key, value = self.key(tokens) * self.scale, self.drop_path(self.value(tokens))
        logits = self._logits(x, key)
        return add_weighted_sum(self.lateral(x), value, logits.softmax(dim=2))

    def _logits(self, x: Tensor, key: Tensor) -> Tensor:
        """Products of pixels and tokens [B, heads, L, H * W]."""
        if self.num_heads == 1:
            return product_logits(key, self.query, x)[:, None]
        query, key = (t.unflatten(1, (self.num_heads, -1)) for t in (self.query(x).flatten(2), key))
        return key.transpose(2, 3) @ query


TOKENIZERS = dict(
    filter=FilterTokenizer,
    recurrent=RecurrentTokenizer,
    pooling=PoolingTokenizer,
    clustering=ClusteringTokenizer)


def _pool(x: Tensor, num_tokens: int) -> Tensor:
    """Averages over `num_tokens` windows of a map: [B, C, H, W] to [B, C, L]."""
    rows = next(n for n in range(isqrt(num_tokens), 0, -1) if num_tokens % n == 0)
    return F.adaptive_avg_pool2d(x, (rows, num_tokens // rows)).flatten(2)
