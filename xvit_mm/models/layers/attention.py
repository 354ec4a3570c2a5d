"""The one call to fused attention, and self-attention by it."""
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .cache import sizes_are_symbolic

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
        if bias.requires_grad and query.device.type == 'cpu':
            return _attend_unfused(query, key, value, bias)
    if sizes_are_symbolic() or query.shape[0] <= MAX_FUSED_BATCH:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    parts = zip(*(t.split(MAX_FUSED_BATCH) for t in (query, key, value)))
    return torch.cat([F.scaled_dot_product_attention(q, k, v, bias) for q, k, v in parts])


def _attend_unfused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    # Fused attention on a CPU has no gradient for the bias, and torch's own way without it takes
    # twice as many operations. Stacking makes all three contiguous in one copy.
    query, key, value = torch.stack([query, key, value])
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
        query, key, value = rearrange(
            self.qkv(x), 'b n (three h d) -> three b h n d', three=3, h=self.num_heads)
        return self.proj(rearrange(attend(query, key, value), 'b h n d -> b n (h d)'))
