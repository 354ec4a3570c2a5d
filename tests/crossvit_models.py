"""Small CrossViTs, and official checkpoints of any variant, for the tests of CrossViT."""
from collections.abc import Iterator

import torch
from golden import golden_weights
from torch import Tensor, nn

from xvit_mm.models import CrossViT, CrossViTClsHead
from xvit_mm.models.backbones.crossvit import VARIANTS
from xvit_mm.models.layers import CrossAttention

TINY = dict(embed_dims=(8, 16), depths=(1, 2), num_heads=2, mlp_ratio=2, img_size=32)


def classifier(arch='small', num_classes: int = 1000, **settings) -> nn.ModuleDict:
    backbone = CrossViT(arch, out_type='cls_token', **settings)
    head = CrossViTClsHead(num_classes, backbone.out_channels)
    return nn.ModuleDict(dict(backbone=backbone, head=head))


def logits(model: nn.ModuleDict, image: Tensor) -> Tensor:
    return model.head(model.backbone(image))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of order one in every parameter, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        scale = parameter[0].numel()**-0.5 if parameter.ndim > 1 else 0.3
        parameter.data = (noise * scale + (parameter.ndim == 1)).to(parameter.dtype)
    return module


def images(height: int, width: int, batch: int = 1, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=dtype)


def official_keys(arch: str, classes: int = 1000) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of timm's state dict of a published variant, written out from the spec."""
    v = VARIANTS[arch]
    dims, others = v['embed_dims'], v['embed_dims'][::-1]
    sides = (34, 24) if v['img_size'] == 384 else (20, 14)

    def linear(name: str, out: int, into: int, *kernel: int) -> Iterator[tuple[str, list[int]]]:
        yield f'{name}.weight', [out, into, *kernel]
        yield f'{name}.bias', [out]

    def norm(name: str, width: int) -> Iterator[tuple[str, list[int]]]:
        yield f'{name}.weight', [width]
        yield f'{name}.bias', [width]

    for i, (c, side, patch) in enumerate(zip(dims, sides, (12, 16))):
        yield f'cls_token_{i}', [1, 1, c]
        yield f'pos_embed_{i}', [1, 1 + side * side, c]
        if v['multi_conv']:
            yield from linear(f'patch_embed.{i}.proj.0', c // 4, 3, 7, 7)
            yield from linear(f'patch_embed.{i}.proj.2', c // 2, c // 4, 3, 3)
            yield from linear(f'patch_embed.{i}.proj.4', c, c // 2, 3, 3)
        else:
            yield from linear(f'patch_embed.{i}.proj', c, 3, patch, patch)
        yield from norm(f'norm.{i}', c)
        yield from linear(f'head.{i}', classes, c)
    for k in range(3):
        for i, (c, other) in enumerate(zip(dims, others)):
            for j in range(v['depths'][i]):
                block = f'blocks.{k}.blocks.{i}.{j}'
                yield from norm(f'{block}.norm1', c)
                yield from linear(f'{block}.attn.qkv', 3 * c, c)
                yield from linear(f'{block}.attn.proj', c, c)
                yield from norm(f'{block}.norm2', c)
                yield from linear(f'{block}.mlp.fc1', v['mlp_ratio'] * c, c)
                yield from linear(f'{block}.mlp.fc2', c, v['mlp_ratio'] * c)
            yield from norm(f'blocks.{k}.projs.{i}.0', c)
            yield from linear(f'blocks.{k}.projs.{i}.2', other, c)
            yield from norm(f'blocks.{k}.fusion.{i}.norm1', other)
            for part in ('wq', 'wk', 'wv', 'proj'):
                yield from linear(f'blocks.{k}.fusion.{i}.attn.{part}', other, other)
            yield from norm(f'blocks.{k}.revert_projs.{i}.0', other)
            yield from linear(f'blocks.{k}.revert_projs.{i}.2', c, other)


def official(arch: str, classes: int = 1000) -> dict[str, Tensor]:
    return golden_weights(official_keys(arch, classes))


def as_ibm(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.replace('token_', 'token.').replace('embed_', 'embed.') if n[-2] == '_' else n: t
            for n, t in state_dict.items()}


def plain_cross_attention(attn: CrossAttention, x: Tensor) -> Tensor:
    """Cross-attention with keys and values of all tokens."""
    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    query, key, value = heads(attn.wq(x[:, :1])), heads(attn.wk(x)), heads(attn.wv(x))
    weights = (query @ key.mT * query.shape[-1]**-0.5).softmax(dim=-1)
    return attn.proj((weights @ value).transpose(1, 2).flatten(2))
