"""How the two branches of CrossViT exchange information (arXiv 2103.14899, section 3.3).

The paper compares four schemes and adopts cross-attention. Each takes the tokens of both branches,
small patches first, [B, 1 + N, C] with the class token in front, and the grids (height, width) of
their patches, and returns tokens of the same shapes. Projections f lead into the width in which a
scheme works and g back, each LayerNorm, GELU, Linear as in the official code.

The official code has only cross-attention. For the other three the paper gives formulas without
the common width of f; here it is the large branch's (inferred).
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import SelfAttention, attend
from .drop_path import DropPath
from .plain import is_plain
from .resample import resample_tokens

NORM_EPS = 1e-6
Grids = tuple[tuple[int, int], tuple[int, int]]


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """f or g of the paper: [..., in_channels] to [..., out_channels]."""
    return nn.Sequential(
        nn.LayerNorm(in_channels, eps=NORM_EPS), nn.GELU(), nn.Linear(in_channels, out_channels))


class CrossAttention(nn.Module):
    """Multi-head attention whose only query is the first token (paper section 3.3).

    [B, N, C] to [B, 1, C]: the result for the first token, which is among the keys as well.

    With one query the projections of keys and values need not be applied to every token:
    q . (W_k x) = (W_k^T q) . x and sum_j a_j W_v x_j = W_v sum_j a_j x_j. So one vector per head is
    projected instead of N tokens, exactly, as there is no dropout: 7 to 21 times faster on a CPU.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq = nn.Linear(embed_dims, embed_dims)
        self.wk = nn.Linear(embed_dims, embed_dims)
        self.wv = nn.Linear(embed_dims, embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        if not (is_plain(self.wk, nn.Linear) and is_plain(self.wv, nn.Linear)):
            return self._attend_as_written(x)
        per_head = (self.num_heads, -1)
        query = self.wq(x[:, 0]).unflatten(1, per_head) * (x.shape[-1] // self.num_heads)**-0.5
        key = torch.einsum('bhd,hdc->bhc', query, self.wk.weight.unflatten(0, per_head))
        # The softmax cancels what the bias adds, one number per head; without it the bias would be
        # a parameter that gets no gradient.
        shift = (query * self.wk.bias.unflatten(0, per_head)).sum(-1, keepdim=True)
        mixed = (key @ x.transpose(1, 2) + shift).softmax(dim=-1) @ x
        value = torch.einsum('bhc,hdc->bhd', mixed, self.wv.weight.unflatten(0, per_head))
        return self.proj(value.flatten(1) + self.wv.bias)[:, None]

    def _attend_as_written(self, x: Tensor) -> Tensor:
        query, key, value = (
            t.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for t in (self.wq(x[:, :1]), self.wk(x), self.wv(x)))
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))


class CrossAttentionFusion(nn.Module):
    """The class token of each branch attends to the patches of the other.

    x'_i = [f_i(cls_i) || patches_j];  y_i = f_i(cls_i) + MCA(LN(x'_i))
    z_i = [g_i(y_i) || patches_i]

    f_i goes to the width of the other branch j, where the attention takes place. Linear in the
    number of tokens; there is no feed-forward part.
    """

    def __init__(self, embed_dims: Sequence[int], num_heads: int, *, drop_path: float) -> None:
        super().__init__()
        pairs = list(zip(embed_dims, reversed(embed_dims)))
        self.project = nn.ModuleList(projection(own, other) for own, other in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(other, eps=NORM_EPS) for _, other in pairs)
        self.attns = nn.ModuleList(CrossAttention(other, num_heads) for _, other in pairs)
        self.revert = nn.ModuleList(projection(other, own) for own, other in pairs)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        small, large = tokens
        return [self._exchange(0, small, large), self._exchange(1, large, small)]

    def _exchange(self, branch: int, own: Tensor, other: Tensor) -> Tensor:
        agent = self.project[branch](own[:, :1])
        context = self.norms[branch](torch.cat([agent, other[:, 1:]], dim=1))
        agent = self.drop_path.add(agent, self.attns[branch](context))
        return torch.cat([self.revert[branch](agent), own[:, 1:]], dim=1)


class AllAttentionFusion(nn.Module):
    """Self-attention among all tokens of both branches.

    y = [f_s(x_s) || f_l(x_l)];  o = y + MSA(LN(y));  z_i = g_i(o_i)

    Quadratic in the number of tokens, but no N x N matrix is held.
    """

    def __init__(self, embed_dims: Sequence[int], num_heads: int, *, drop_path: float) -> None:
        super().__init__()
        width = embed_dims[1]
        self.project = nn.ModuleList(projection(own, width) for own in embed_dims)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, num_heads)
        self.revert = nn.ModuleList(projection(width, own) for own in embed_dims)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        joined = torch.cat([f(x) for f, x in zip(self.project, tokens)], dim=1)
        joined = self.drop_path.add(joined, self.attn(self.norm(joined)))
        parts = joined.split([x.shape[1] for x in tokens], dim=1)
        return [g(part) for g, part in zip(self.revert, parts)]


class ClassTokenFusion(nn.Module):
    """The class tokens are summed; patches read the sum in the next block of their branch.

    z_i = [g_i(f_s(cls_s) + f_l(cls_l)) || patches_i]
    """

    def __init__(self, embed_dims: Sequence[int], num_heads: int, *, drop_path: float) -> None:
        super().__init__()
        # Names differ between the schemes, so that weights of one do not load into another.
        self.project_classes = nn.ModuleList(projection(own, embed_dims[1]) for own in embed_dims)
        self.revert_classes = nn.ModuleList(projection(embed_dims[1], own) for own in embed_dims)

    def forward(self, tokens: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        fused = sum(f(x[:, :1]) for f, x in zip(self.project_classes, tokens))
        return [torch.cat([g(fused), x[:, 1:]], dim=1)
                for g, x in zip(self.revert_classes, tokens)]


class PairwiseFusion(nn.Module):
    """Class tokens are summed, and so are patches at the same place.

    z_i = [g_i(f_s(cls_s) + f_l(cls_l)) || g_i(f_s(patches_s) + f_l(patches_l))]

    The sum is taken on the grid of the small branch: the patches of the large one are interpolated
    to it before f_l, and the sum is interpolated back before g_l (bilinear, inferred).
    """

    def __init__(self, embed_dims: Sequence[int], num_heads: int, *, drop_path: float) -> None:
        super().__init__()
        self.project_pairs = nn.ModuleList(projection(own, embed_dims[1]) for own in embed_dims)
        self.revert_pairs = nn.ModuleList(projection(embed_dims[1], own) for own in embed_dims)

    def forward(self, tokens: Sequence[Tensor], grids: Grids) -> list[Tensor]:
        (small, large), (fine, coarse) = tokens, grids
        f_small, f_large = self.project_pairs
        g_small, g_large = self.revert_pairs
        fused = f_small(small) + f_large(resample_tokens(large, coarse, fine, mode='bilinear'))
        return [g_small(fused), g_large(resample_tokens(fused, fine, coarse, mode='bilinear'))]


FUSIONS = {
    'cross': CrossAttentionFusion,
    'all': AllAttentionFusion,
    'class_token': ClassTokenFusion,
    'pairwise': PairwiseFusion,
}
