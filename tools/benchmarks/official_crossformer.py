"""CrossFormer computed as the official dense code does it: the peer of `tools/benchmark.py`.

The same result as `xvit_mm.CrossFormer`, whose parameters it has, without its economies: every map
is padded to whole groups, a mask of all pairs of tokens keeps the padding out, attention stores its
N x N matrix, and mask, offsets and position bias are made again in every block of every pass.
Written from the papers and from what the official code is known to do, not copied from it.

    python tools/benchmark.py xvit_mm.CrossFormer:arch=s OfficialCrossFormer:arch=s --sizes 224 512
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from mmengine.registry import MODELS
from torch import Tensor, nn

from xvit_mm.models.backbones import CrossFormer

PADDED = -1e6


@MODELS.register_module(force=True)
class OfficialCrossFormer(CrossFormer):
    """`xvit_mm.CrossFormer` in the official formulation."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.permute(0, 2, 3, 1)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage.post_norm(embed(stage.embed, stage.pre_norm(x)))
            for j, block in enumerate(stage.blocks):
                interval = stage.interval if j % 2 else 1
                x = x + block.drop_path(
                    attend_in_groups(block.attn, block.norm1(x), stage.group_size, interval))
                mlp = block.mlp
                x = x + block.drop_path(mlp.fc2(mlp.act(mlp.fc1(block.norm2(x)))))
                x = block.cooling(x)
            if i in self.out_indices:
                maps.append(x.permute(0, 3, 1, 2).contiguous())
        return tuple(maps)


def embed(embedding: nn.Module, x: Tensor) -> Tensor:
    """[B, H, W, C_in] to [B, H / stride, W / stride, C_out]."""
    x = x.permute(0, 3, 1, 2)
    x = F.pad(x, (0, -x.shape[3] % embedding.stride, 0, -x.shape[2] % embedding.stride))
    return torch.cat([proj(x) for proj in embedding.projs], dim=1).permute(0, 2, 3, 1)


def attend_in_groups(attn: nn.Module, x: Tensor, group_size: int, interval: int) -> Tensor:
    """[B, H, W, C] to the same."""
    batch, height, width, channels = x.shape
    if min(height, width) <= group_size:
        group_size, interval = max(height, width), 1
    window = group_size * interval
    padding = (0, 0, 0, -width % window, 0, -height % window)
    groups = partition(F.pad(x, padding), group_size, interval)
    real = partition(F.pad(x.new_ones(1, height, width, 1), padding), group_size, interval)[..., 0]
    mask = x.new_zeros(len(real), group_size**2, group_size**2)
    mask = mask.masked_fill(real[:, None, :] == 0, PADDED)

    qkv = attn.qkv(groups).reshape(len(groups), group_size**2, 3, attn.num_heads, -1)
    query, key, value = (t.contiguous() for t in qkv.permute(2, 0, 3, 1, 4))
    logits = query * query.shape[-1]**-0.5 @ key.transpose(-2, -1)
    logits = logits + position_bias(attn.position_bias, group_size, x.device)
    logits = logits.view(batch, len(mask), *logits.shape[1:]) + mask[:, None]
    weights = logits.flatten(0, 1).softmax(dim=-1)
    out = attn.proj((weights @ value).transpose(1, 2).reshape(groups.shape))
    rows, columns = (height + padding[5]) // window, (width + padding[3]) // window
    out = rearrange(
        out, '(b r i s j) (g k) c -> b (r g i) (s k j) c', r=rows, s=columns, i=interval,
        j=interval, g=group_size)
    return out[:, :height, :width].contiguous()


def partition(x: Tensor, group_size: int, interval: int) -> Tensor:
    """[B, H, W, C] to [B * groups, group_size**2, C]."""
    return rearrange(
        x, 'b (r g i) (s k j) c -> (b r i s j) (g k) c', g=group_size, k=group_size, i=interval,
        j=interval).contiguous()


def position_bias(network: nn.Module, group_size: int, device: torch.device) -> Tensor:
    """[heads, N, N] for the N tokens of a group."""
    span = torch.arange(1 - group_size, group_size, device=device)
    offsets = torch.stack(torch.meshgrid(span, span, indexing='ij')).flatten(1).T.float()
    side = torch.arange(group_size, device=device)
    places = torch.stack(torch.meshgrid(side, side, indexing='ij')).flatten(1)
    rows, columns = places[:, :, None] - places[:, None, :] + group_size - 1
    index = rows * (2 * group_size - 1) + columns
    return network(offsets)[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)
