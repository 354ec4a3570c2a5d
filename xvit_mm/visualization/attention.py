"""What the backbones attend to, as maps over the image.

Everything is read from a forward pass with hooks, so it shows the model as it runs. A map is
[h, w] with weights of at least 0; NaN is where a token cannot look.
"""
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xvit_mm.models.backbones import CrossFormer, CrossViT, XFormer
from xvit_mm.models.layers.fusion import CrossAttention, CrossAttentionFusion
from xvit_mm.models.layers.patches import fold

Maps = dict[str, Tensor]


def attention_maps(backbone: nn.Module, images: Tensor, pixel: tuple[float, float]) -> Maps:
    """What a backbone attends to in the first of images [B, 3, H, W], by a short title.

    - CrossFormer: the weights with which the token at `pixel` reads the others, in the last short-
      distance (SDA) and the last long-distance (LDA) block of every stage, mean of the heads.
    - CrossViT: the weights with which the class token of each branch reads the patches of the
      other, after every encoder, mean of the heads.
    - XFormer: the size of the query context score of every token, in the last block of every
      stage, mean of the heads.

    Args:
        backbone: one of these, in eval mode.
        images: as the backbone takes them.
        pixel: (x, y) as shares of width and height, from 0 to 1; CrossFormer's query.

    Raises:
        TypeError: another backbone.
        ValueError: CrossViT with another fusion than cross-attention.
    """
    for kind, read in _READERS.items():
        if isinstance(backbone, kind):
            return read(backbone, images, pixel)
    names = ', '.join(kind.__name__ for kind in _READERS)
    raise TypeError(f'{type(backbone).__name__} has no attention to draw here; there are {names}')


def receptive_fields(backbone: nn.Module, images: Tensor, pixel: tuple[float, float]) -> Maps:
    """How much each pixel of the first image changes the maps of a backbone at one place.

    The effective receptive field (arXiv 1701.04128): the size of the gradient, with respect to the
    image, of the sum of the channels of each map at `pixel`; [H, W].
    """
    images = images[:1].detach().requires_grad_()
    with torch.enable_grad():
        outputs = [output for output in backbone(images) if output.ndim == 4]
        fields = {}
        for output in outputs:
            x, y = _at(pixel, output.shape[2:])
            gradient, = torch.autograd.grad(output[0, :, y, x].sum(), images, retain_graph=True)
            stride = round(images.shape[3] / output.shape[3])
            fields[f'receptive field, stride {stride}'] = gradient[0].abs().sum(0)
    return fields


def attention_row(attention: nn.Module, inputs: tuple, row: int, column: int) -> Tensor:
    """The weights of one token in an attention that is linear in its values.

    attention: a module with `qkv` and `proj`, called with `inputs`, of which the first is
    [1, H, W, C]. Returns [heads, H, W].

    Without `proj` and with fixed queries and keys, an output is sum_j a_ij W_v x_j: the gradient of
    one of its channels with respect to x_j is a_ij times a row of W_v. That holds whatever groups
    the module makes.
    """
    x, *others = inputs
    x = x.detach().requires_grad_()
    channels = x.shape[-1]

    def fix_queries_and_keys(module: nn.Module, args: tuple, qkv: Tensor) -> Tensor:
        return torch.cat([qkv[..., :2 * channels].detach(), qkv[..., 2 * channels:]], dim=-1)

    with torch.enable_grad(), ExitStack() as stack:
        for module, hook in ((attention.qkv, fix_queries_and_keys),
                             (attention.proj, lambda module, args, output: args[0])):
            stack.callback(module.register_forward_hook(hook).remove)
        output = attention.forward(x, *others)[0, row, column]
        rows = attention.qkv.weight[2 * channels:].unflatten(0, (attention.num_heads, -1))
        # Any channel of a head will do; that with the longest row is the most exact.
        best = rows.norm(dim=2).argmax(1)
        weights = []
        for head, index in enumerate(best.tolist()):
            channel = head * rows.shape[1] + index
            gradient, = torch.autograd.grad(output[channel], x, retain_graph=True)
            weights.append(gradient[0].norm(dim=-1) / rows[head, index].norm())
    return torch.stack(weights).detach()


@torch.no_grad()
def _crossformer(backbone: nn.Module, images: Tensor, pixel: tuple[float, float]) -> Maps:
    wanted = {}
    for i, stage in enumerate(backbone.stages):
        for offset, kind in enumerate(('SDA', 'LDA')):
            blocks = list(stage.blocks)[offset::2]
            if blocks:
                wanted[blocks[-1]] = f'stage {i + 1}, {kind}'
    attentions = [block.attn for block in wanted]
    calls = _inputs_of([*wanted, *attentions], backbone, images[:1])
    maps = {}
    for (block, title), attention in zip(wanted.items(), attentions):
        size = calls[block][0].shape[1:3]
        tokens, *others = calls[attention]
        x, y = _at(pixel, size)
        row = attention_row(attention, (tokens.unflatten(1, size), *others), y, x).mean(0)
        maps[title] = torch.where(row > 0, row, torch.nan)
    return maps


@torch.no_grad()
def _crossvit(backbone: nn.Module, images: Tensor, pixel: tuple[float, float]) -> Maps:
    fusions = [module for module in backbone.modules() if isinstance(module, CrossAttentionFusion)]
    if not fusions:
        raise ValueError("fusion: class tokens look at patches only with fusion='cross'")
    attentions = [attention for fusion in fusions for attention in fusion.attns]
    calls = _inputs_of([*fusions, *attentions], backbone, images[:1])
    maps = {}
    for i, fusion in enumerate(fusions):
        grids = calls[fusion][1]
        for branch, attention in enumerate(fusion.attns):
            weights = class_token_weights(attention, calls[attention][0])[0].mean(0)
            # Token 0 is the class token itself.
            patches = weights[1:].unflatten(0, grids[1 - branch])
            name = ('S reads L', 'L reads S')[branch]
            maps[f'encoder {i + 1}, {name}'] = patches
    return maps


def class_token_weights(attention: CrossAttention, x: Tensor) -> Tensor:
    """The weights [B, heads, N] with which the first of tokens [B, N, C] reads all of them."""
    per_head = (attention.num_heads, -1)
    query = attention.wq(x[:, 0]).unflatten(1, per_head)
    key = attention.wk(x).unflatten(2, per_head)
    return torch.einsum('bhd,bnhd->bhn', query, key).mul(query.shape[2]**-0.5).softmax(2)


@torch.no_grad()
def _xformer(backbone: nn.Module, images: Tensor, pixel: tuple[float, float]) -> Maps:
    scores: dict[nn.Module, list[Tensor]] = {}
    transformers = {
        name: module for name, module in backbone.named_modules() if hasattr(module, 'to_tokens')}
    with ExitStack() as stack:
        for module in transformers.values():
            conv = module.blocks[-1].attn.token_conv
            stack.callback(conv.register_forward_hook(
                lambda conv, args, output: scores.setdefault(conv, []).append(output)).remove)
        calls = _inputs_of(transformers.values(), backbone, images[:1])
    maps = {}
    for module in transformers.values():
        height, width = calls[module][0].shape[2:]
        attention = module.blocks[-1].attn
        # One part for each set of sequences of one length, [sequences, scores, N].
        tokens = torch.cat([part.abs().transpose(1, 2).reshape(1, -1, part.shape[1])
                            for part in scores[attention.token_conv]], dim=1)
        maps[f'XFA, {height} x {width} tokens'] = fold(tokens, height, width)[0].mean(0)
    return maps


_Reader = Callable[[nn.Module, Tensor, tuple[float, float]], Maps]
_READERS: Mapping[type, _Reader] = {
    CrossFormer: _crossformer, CrossViT: _crossvit, XFormer: _xformer}


def _inputs_of(modules: Any, backbone: nn.Module, images: Tensor) -> dict[nn.Module, tuple]:
    """What the modules are called with in a forward pass."""
    calls: dict[nn.Module, tuple] = {}
    with _hooked(modules, lambda module, args: calls.__setitem__(module, args)):
        backbone(images)
    return calls


@contextmanager
def _hooked(modules: Any, hook: Callable) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _at(pixel: tuple[float, float], shape: tuple[int, int]) -> tuple[int, int]:
    """Column and row of a place on a map of (height, width)."""
    return (min(int(pixel[0] * shape[1]), shape[1] - 1),
            min(int(pixel[1] * shape[0]), shape[0] - 1))
