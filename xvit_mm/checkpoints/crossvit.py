"""Names in the checkpoints of github.com/IBM/CrossViT and of timm's CrossViT."""
from math import isqrt
from typing import Any

from .names import OfficialNames, StateDict

_ENCODER = r'blocks\.(\d+)\.'
_FUSION = r'encoders.\1.fusion.'
# The part of our names that only one scheme has.
_SCHEMES = {
    'attns': 'cross', 'attn': 'all', 'project_classes': 'class_token', 'project_pairs': 'pairwise'}


def _settings(state_dict: StateDict) -> dict[str, Any]:
    """What an arch consists of, but for the number of heads, which no tensor shows.

    The fusion is named only where it is not cross-attention, which all published variants have.
    """
    dims = tuple(state_dict[f'embeds.{i}.cls_token'].shape[-1] for i in range(2))
    names = [name.split('.') for name in state_dict if name.startswith('encoders.')]
    encoders = {parts[1] for parts in names}
    blocks = {(int(p[3]), p[4]) for p in names if p[1] == '0' and p[2] == 'blocks'}
    side = isqrt(state_dict['embeds.1.pos_embed'].shape[1] - 1)
    multi_conv = 'embeds.0.proj.0.weight' in state_dict
    patch_sizes = (12, 16) if multi_conv else tuple(
        state_dict[f'embeds.{i}.proj.weight'].shape[-1] for i in range(2))
    settings = dict(
        embed_dims=dims,
        depths=tuple(sum(branch == i for branch, _ in blocks) for i in range(2)),
        mlp_ratio=len(state_dict['encoders.0.blocks.1.0.mlp.fc1.weight']) / dims[1],
        multi_conv=multi_conv,
        img_size=patch_sizes[1] * side,
        num_encoders=len(encoders),
        patch_sizes=patch_sizes,
        cross_attn_depth=1 + len({p[3] for p in names if p[1] == '0' and p[2] == 'more_fusions'}))
    parts = {p[3] for p in names if p[2] == 'fusion'}
    fusion = next((scheme for part, scheme in _SCHEMES.items() if part in parts), 'unknown')
    return settings if fusion == 'cross' else settings | dict(fusion=fusion)


CROSSVIT_NAMES = OfficialNames(
    model='CrossViT',
    signature='blocks.0.fusion.0.attn.wq.weight',
    own_signature='embeds.0.cls_token',
    backbone=(
        # IBM writes cls_token.0, timm cls_token_0.
        (r'(cls_token|pos_embed)[._](\d)', r'embeds.\2.\1'),
        (r'patch_embed\.(\d)\.proj\.(.+)', r'embeds.\1.proj.\2'),
        (rf'{_ENCODER}blocks\.(\d)\.(\d+)\.'
         r'((?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\..+)',
         r'encoders.\1.blocks.\2.\3.\4'),
        (rf'{_ENCODER}projs\.(.+)', rf'{_FUSION}project.\2'),
        (rf'{_ENCODER}fusion\.(\d)\.norm1\.(.+)', rf'{_FUSION}norms.\2.\3'),
        (rf'{_ENCODER}fusion\.(\d)\.attn\.(.+)', rf'{_FUSION}attns.\2.\3'),
        (rf'{_ENCODER}revert_projs\.(.+)', rf'{_FUSION}revert.\2'),
    ),
    head=((r'norm\.(\d)\.(.+)', r'norms.\1.\2'), (r'head\.(\d)\.(.+)', r'fcs.\1.\2')),
    derived=(),
    settings=_settings,
    new=(r'pyramid\..+',),
    of_outputs=lambda names: {name for name in names if name.startswith('pyramid.levels.')},
)
