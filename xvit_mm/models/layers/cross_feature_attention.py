"""Cross feature attention (XFA) of XFormer (arXiv 2207.07268): linear in the number of tokens.

Self-attention compares every query with every key: N x N numbers for N tokens. XFA normalises
queries and keys to length 1 and replaces the keys by two convolutions of them, one along the
tokens and one along the features. What the values say is summed up in a map of the features before
the queries read it, so that nothing of size N x N exists, and no softmax is needed.

The paper's formula could not be read; docs/xformer.md says where each part comes from. The product
has two readings. Dividing by N makes its scale the same at every image size.

With q, k, v [N, d] of one head, s_N = conv along tokens, s_D = conv along features:

    vector   lambda / N  q s_D^T (s_N^T v)         s_N(k) [N, 1], s_D(mean of k over tokens) [1, d]
    map      lambda / N  q ((s_N * s_D)^T v)       s_N(k) [N, d], s_D(k) [N, d]
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import sizes_are_symbolic
from .linear import apply_linear
from .plain import is_plain

ATTN_MODES = ('vector', 'map')
KERNEL = 3
# Below this length a vector is not brought to length 1. It bounds the gradient of a zero token.
MIN_LENGTH = 1e-4


class CrossFeatureAttention(nn.Module):
    """Cross feature attention within sequences: tokens [B, T, C] to the same.

    The T tokens are one or more sequences in a row, `lengths` says how many tokens each has;
    tokens of different sequences do not see each other. Instead of lengths it may be a mask
    [sequences, N] for sequences padded to N tokens, False for padding, which nothing reads.

    Args:
        embed_dims: C.
        attn_dims: width of q, k and v, over all heads.
        num_heads: heads; they divide attn_dims.
        mode: `vector` or `map`, as above.
        init_lambda: the temperature at the start.
    """

    def __init__(
        self,
        embed_dims: int,
        attn_dims: int,
        *,
        num_heads: int = 4,
        mode: str = 'vector',
        init_lambda: float = 1.,
    ) -> None:
        super().__init__()
        self.num_heads, self.mode = num_heads, mode
        self.qkv = nn.Linear(embed_dims, 3 * attn_dims)
        scores, heads = (num_heads, num_heads) if mode == 'vector' else (attn_dims, 1)
        self.token_conv = nn.Conv1d(
            attn_dims, scores, KERNEL, padding=KERNEL // 2, groups=num_heads)
        self.feature_conv = nn.Conv1d(heads, heads, KERNEL, padding=KERNEL // 2, groups=heads)
        self.temperature = nn.Parameter(torch.full((num_heads, 1), float(init_lambda)))
        self.proj = nn.Linear(attn_dims, embed_dims)

    def forward(self, x: Tensor, lengths: Sequence[int] | Tensor) -> Tensor:
        qkv = apply_linear(self.qkv, x)
        if isinstance(lengths, Tensor):
            mask = lengths.repeat(x.shape[0], 1)
            sequences = self.mix(qkv.reshape(*mask.shape, qkv.shape[2]), mask)
            out = sequences.reshape(*x.shape[:2], self.proj.in_features)
        # Symbols cannot be compared without fixing the size.
        elif not sizes_are_symbolic() and len(set(lengths)) == 1:
            # No -1 in these shapes, which would be ambiguous for an empty batch.
            sequences = qkv.reshape(x.shape[0] * len(lengths), lengths[0], qkv.shape[2])
            out = self.mix(sequences).reshape(*x.shape[:2], self.proj.in_features)
        else:
            parts = [part for part in qkv.split(list(lengths), dim=1) if part.shape[1]]
            out = torch.cat([self.mix(part) for part in parts], dim=1)
        return apply_linear(self.proj, out)

    def mix(self, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        """[sequences, N, 3 D] to [sequences, N, D]; mask: [sequences, N], False for padding."""
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).unbind(2)  # [S, N, heads, d]
        query, key = _unit_length(query), _unit_length(key)
        # Half of the 1 / N before the sum over N tokens and half after it: neither the terms nor
        # the sum then leave the range of fp16. N of qkv itself: behind unflatten it would be a
        # constant of an ONNX model.
        scale = qkv.shape[1]**-0.5
        if mask is not None:
            # A convolution pads with zeros as well.
            key, value = (t * mask[:, :, None, None].to(t) for t in (key, value))
            scale = mask.sum(1).clamp_min(1)[:, None, None].to(torch.float32)**-0.5
        read = self._vector if self.mode == 'vector' else self._map
        return read(query, key, value, scale).flatten(2)

    def _vector(self, query: Tensor, key: Tensor, value: Tensor, scale: float | Tensor) -> Tensor:
        context = self.token_conv(key.flatten(2).transpose(1, 2))  # [S, heads, N]
        mean = key.sum(1) * scale**2 if isinstance(scale, Tensor) else key.mean(1)
        feature = self.feature_conv(mean.to(key))  # [S, heads, d]
        summary = torch.einsum('shn,snhd->shd', (context * scale).to(value), value) * scale
        weight = torch.einsum('snhd,shd->snh', query, feature)
        summary = (self.temperature * summary).to(weight)
        return weight.unsqueeze(3) * summary.unsqueeze(1)

    def _map(self, query: Tensor, key: Tensor, value: Tensor, scale: float | Tensor) -> Tensor:
        context = self.token_conv(key.flatten(2).transpose(1, 2))  # [S, D, N]
        context = context.transpose(1, 2).unflatten(2, (self.num_heads, -1))
        if isinstance(scale, Tensor):
            scale = scale[..., None]
        scores = (context * self._along_features(key) * scale).to(value)
        summary = torch.einsum('snhd,snhe->shde', scores, value) * scale
        summary = (self.temperature.unsqueeze(2) * summary).to(query)
        return torch.einsum('snhd,shde->snhe', query, summary)

    def _along_features(self, key: Tensor) -> Tensor:
        """`feature_conv` along the last axis, [..., d] to the same.

        As a product with the matrix of the convolution, which is what it makes of the identity:
        a convolution of so many short rows is 3 times slower.
        """
        conv = self.feature_conv
        if not is_plain(conv, nn.Conv1d):
            return conv(key.reshape(-1, 1, key.shape[-1])).view(key.shape)
        assert conv.bias is not None
        identity = torch.eye(key.shape[-1], device=key.device).to(conv.weight)  # bf16 in torch 2.1
        matrix = F.conv1d(identity.unsqueeze(1), conv.weight, padding=conv.padding).squeeze(1)
        return key @ matrix.to(key) + conv.bias.to(key)


def _unit_length(x: Tensor) -> Tensor:
    # Squares of half-precision numbers are summed in float32.
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return x / length.clamp_min(MIN_LENGTH).to(x)
