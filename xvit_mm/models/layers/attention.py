"""The one call to fused attention, and self-attention by it."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .cache import is_exporting, sizes_are_symbolic
from .linear import apply_linear

# CUDA's fused kernels put the batch on a grid axis of at most 65,535 blocks.
MAX_FUSED_BATCH = 65_535


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, `softmax(q k^T / sqrt(d) + bias) v`, without storing q k^T.

    query, key, value: [batch, heads, tokens, d]; bias: [1, heads, tokens, tokens] or None.
    Returns [batch, heads, tokens, d].
    """
    # With any other rank torch silently takes an unfused kernel that is several times slower.
    assert query.ndim == 4 and (bias is None or bias.ndim == 4), 'fused attention needs 4-D inputs'
    if bias is not None:
        bias = bias.to(query.dtype)
        if not attends_fused(bias):
            return _attend_unfused(query, key, value, bias)
    if sizes_are_symbolic() or query.shape[0] <= MAX_FUSED_BATCH:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    parts = zip(*(t.split(MAX_FUSED_BATCH) for t in (query, key, value)))
    return torch.cat([F.scaled_dot_product_attention(q, k, v, bias) for q, k, v in parts])


def split_heads(qkv: Tensor, num_heads: int, *, copy: bool = False) -> Sequence[Tensor]:
    """[batch, tokens, 3 C] to query, key and value, each [batch, heads, tokens, C / heads].

    `copy`: contiguous, as separate products of matrices need them.
    """
    if copy and not sizes_are_symbolic():
        return _SplitHeads.apply(qkv, num_heads)
    return rearrange(qkv, 'b n (three h d) -> three b h n d', three=3, h=num_heads).unbind()


class _SplitHeads(torch.autograd.Function):
    """One copy forward and one backward, where autograd takes three backward."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int) -> Sequence[Tensor]:
        heads = rearrange(qkv, 'b n (three h d) -> three b h n d', three=3, h=num_heads)
        return heads.contiguous().unbind()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return torch.stack([grad.transpose(1, 2) for grad in grads], dim=2).flatten(2), None


def attends_fused(bias: Tensor) -> bool:
    """Whether `attend` is fused; on a CPU fused attention has no gradient for the bias."""
    if is_exporting():
        # To choose a fused kernel, torch compares sizes that an exported program computes itself.
        return False
    return not bias.requires_grad or bias.device.type != 'cpu'


def _attend_unfused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    # torch's own way takes twice as many operations.
    logits = torch.add(bias, query @ key.transpose(-2, -1), alpha=query.shape[-1]**-0.5)
    return logits.softmax(dim=-1) @ value


class SelfAttention(nn.Module):
    """Multi-head attention among all tokens, as in ViT: [B, N, C] to the same."""

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = split_heads(apply_linear(self.qkv, x), self.num_heads)
        out = rearrange(attend(query, key, value), 'b h n d -> b n (h d)')
        return apply_linear(self.proj, out)
