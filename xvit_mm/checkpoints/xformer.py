"""Names in our own checkpoints of XFormer; there is no official code."""
import re
from typing import Any

from torch import Tensor

from .names import OfficialNames, StateDict


def _settings(state_dict: StateDict) -> dict[str, Any]:
    """Read embed_dims, depths, kernel size and attn_mode from names and shapes of tensors."""
    mv3 = _in_stages(state_dict, r'project\.conv\.weight')
    xf = _in_stages(state_dict, r'blocks\.\d+\.attn\.feature_conv\.weight')
    stages = sorted({stage for stage, _ in mv3})
    widths = {stage: len(weight) for stage, weight in mv3}
    settings: dict[str, Any] = dict(
        embed_dims=tuple(widths[stage] for stage in stages),
        mv3_depths=tuple(sum(s == stage for s, _ in mv3) for stage in stages),
        xf_depths=tuple(sum(s == stage for s, _ in xf) for stage in stages))
    depthwise = state_dict.get('stem.1.depthwise.conv.weight')
    if depthwise is not None:
        settings['kernel_size'] = depthwise.shape[-1]
    if xf:
        settings['attn_mode'] = 'map' if len(xf[0][1]) == 1 else 'vector'
    return settings


def _in_stages(state_dict: StateDict, tensor: str) -> list[tuple[int, Tensor]]:
    """(stage, tensor) for the tensors of the stages' blocks whose name matches."""
    found = ((re.fullmatch(rf'stages\.(\d+)\.\d+\.{tensor}', n), t) for n, t in state_dict.items())
    return [(int(match[1]), t) for match, t in found if match]


XFORMER_NAMES = OfficialNames(
    model='XFormer',
    signature=None,
    own_signature='stem.1.se.reduce.conv.weight',
    settings=_settings,
)
