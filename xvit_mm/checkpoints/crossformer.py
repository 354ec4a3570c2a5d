"""Names in the checkpoints of github.com/cheerss/CrossFormer, for all its eight variants."""
from typing import Any

from .names import OfficialNames, StateDict

_BLOCK = r'layers\.(\d+)\.blocks\.(\d+)\.'
_OURS = r'stages.\1.blocks.\2.'


def _settings(state_dict: StateDict) -> dict[str, Any]:
    """Read the settings of an arch from the names and shapes of the tensors."""
    bias = 'attn.position_bias.layers.9.weight'
    blocks = [n.split('.') for n in state_dict if n.endswith(f'.{bias}')]
    stages = sorted({int(parts[1]) for parts in blocks})
    return dict(
        embed_dims=len(state_dict['stages.0.post_norm.weight']),
        depths=tuple(sum(int(parts[1]) == s for parts in blocks) for s in stages),
        num_heads=tuple(len(state_dict[f'stages.{s}.blocks.0.{bias}']) for s in stages),
        cooling=any('.cooling.' in name for name in state_dict),
        kernel_sizes=tuple(_kernels(state_dict, stage) for stage in stages))


def _kernels(state_dict: StateDict, stage: int) -> tuple[int, ...]:
    name = f'stages.{stage}.embed.projs.{{}}.weight'
    number = sum(n.startswith(f'stages.{stage}.embed.projs.') and n.endswith('.weight')
                 for n in state_dict)
    return tuple(state_dict[name.format(i)].shape[-1] for i in range(number))


CROSSFORMER_NAMES = OfficialNames(
    model='CrossFormer',
    signature='patch_embed.projs.0.weight',
    own_signature='stages.0.embed.projs.0.weight',
    backbone=(
        (r'patch_embed\.projs\.(.+)', r'stages.0.embed.projs.\1'),
        (r'patch_embed\.norm\.(.+)', r'stages.0.post_norm.\1'),
        # The official code counts the embedding between two stages to the earlier one.
        *((rf'layers\.{s}\.downsample\.{theirs}\.(.+)', rf'stages.{s + 1}.{ours}.\1')
          for s in range(3)
          for theirs, ours in (('norm', 'pre_norm'), ('reductions', 'embed.projs'))),
        *((rf'{_BLOCK}attn\.pos\.{theirs}\.(.+)', rf'{_OURS}attn.position_bias.layers.{ours}.\3')
          for theirs, ours in (('pos_proj', 0), (r'pos1\.0', 1), (r'pos1\.2', 3), (r'pos2\.0', 4),
                               (r'pos2\.2', 6), (r'pos3\.0', 7), (r'pos3\.2', 9))),
        (rf'{_BLOCK}ex_conv\.(.+)', rf'{_OURS}cooling.conv.\3'),
        (rf'{_BLOCK}ex_ln\.(.+)', rf'{_OURS}cooling.norm.\3'),
        (rf'{_BLOCK}((?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\..+)', rf'{_OURS}\3'),
    ),
    head=((r'norm\.(.+)', r'norm.\1'), (r'head\.(.+)', r'fc.\1')),
    derived=(r'.*\.attn\.biases', r'.*\.attn\.relative_position_index', r'.*\.attn_mask'),
    settings=_settings,
)
