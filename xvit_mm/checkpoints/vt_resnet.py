"""Names in the checkpoints of torchvision's ResNets, and in those of mmdet, mmpretrain and mmseg.

Their last stage and classifier have no counterpart in VT-ResNet; for the visual tokens there is no
official checkpoint.
"""
import re
from collections.abc import Collection
from typing import Any

from .names import OfficialNames, StateDict


def _settings(state_dict: StateDict) -> dict[str, Any]:
    """depths, bottleneck and num_modules if there are any, from the names of the tensors."""
    blocks = {tuple(map(int, found.groups())) for name in state_dict
              if (found := re.match(r'resnet\.layer(\d+)\.(\d+)\.', name))}
    stages = sorted({stage for stage, _ in blocks})
    settings = dict(
        depths=tuple(sum(stage == s for stage, _ in blocks) for s in stages),
        bottleneck='resnet.layer1.0.conv3.weight' in state_dict)
    modules = _modules(state_dict)
    return settings | dict(num_modules=max(modules) + 1) if modules else settings


def _stage(name: str) -> int | None:
    found = re.match(r'resnet\.layer(\d+)\.', name)
    return int(found[1]) - 1 if found else None


def _modules(names: Collection[str]) -> set[int]:
    """The numbers of the VT modules."""
    return {int(found[1]) for name in names if (found := re.match(r'vt\.(\d+)\.', name))}


def _last_projector(names: Collection[str]) -> set[str]:
    """The last module has a projector for maps and none for tokens."""
    last = max(_modules(names), default=0)
    return {name for name in names if name.startswith(f'vt.{last}.projector.')}


VT_RESNET_NAMES = OfficialNames(
    model='VTResNet',
    signature='layer1.0.conv1.weight',
    own_signature='resnet.layer1.0.conv1.weight',
    backbone=((r'((?:stem|conv1|bn1|layer[123])\..+)', r'resnet.\1'),),
    head=(),
    derived=(),
    settings=_settings,
    new=(r'vt\..+',),
    # Released files of before 2018 do not count batches; ours did not always keep their settings.
    uncounted=(r'.+\.num_batches_tracked', r'vt\._extra_state'),
    of_outputs=_last_projector,
    replaced=(r'layer4\..+', r'fc\..+'),
    stage=_stage,
)
