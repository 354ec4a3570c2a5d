"""Names in the checkpoints of torchvision's ResNets, and in those of mmdet, mmpretrain and mmseg.

Their last stage and classifier have no counterpart in VT-ResNet; for the visual tokens there is no
official checkpoint.
"""
import re
from typing import Any

from .names import OfficialNames, StateDict


def _settings(state_dict: StateDict) -> dict[str, Any]:
    """depths and bottleneck, from the names of the tensors."""
    blocks = {tuple(map(int, found.groups())) for name in state_dict
              if (found := re.match(r'resnet\.layer(\d+)\.(\d+)\.', name))}
    stages = sorted({stage for stage, _ in blocks})
    return dict(
        depths=tuple(sum(stage == s for stage, _ in blocks) for s in stages),
        bottleneck='resnet.layer1.0.conv3.weight' in state_dict)


def _stage(name: str) -> int | None:
    found = re.match(r'resnet\.layer(\d+)\.', name)
    return int(found[1]) - 1 if found else None


VT_RESNET_NAMES = OfficialNames(
    model='VTResNet',
    signature='layer1.0.conv1.weight',
    own_signature='resnet.layer1.0.conv1.weight',
    backbone=((r'((?:stem|conv1|bn1|layer[123])\..+)', r'resnet.\1'),),
    head=(),
    derived=(),
    settings=_settings,
    # Released files of before 2018 do not count batches.
    new=(r'vt\..+', r'.+\.num_batches_tracked'),
    replaced=(r'layer4\..+', r'fc\..+'),
    stage=_stage,
)
