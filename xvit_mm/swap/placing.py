"""Replace the backbone's entry and what else belonged to the old backbone."""
import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from .backbones import dense_arguments
from .changes import Changes
from .maps import Level, build

# Arguments of old backbones that say nothing about which backbone it is.
_CARRIED = {
    'with_cp': 'Activations are recomputed in the backward pass, as before.',
    'in_channels': 'Of the image, as before.',
}


def place_backbone(
    changes: Changes, ours: dict[str, Any], out_indices: Sequence[int]
) -> list[Level]:
    """Replace the backbone by one of this package with these stages; return its maps."""
    old = changes.get('model.backbone')
    arguments = {**ours, 'out_indices': tuple(out_indices), **dense_arguments(ours)}
    module = replace_backbone(changes, arguments)
    changes.explain('model.backbone.out_indices', _maps_line(module))
    if extra := dense_arguments(ours):
        changes.explain(f'model.backbone.{next(iter(extra))}',
                        "As in the released dense models; the arch's own are for images of 224.")
    _carry_norms(changes, old)
    return [Level(*pair) for pair in zip(module.out_channels, module.out_strides)]


def replace_backbone(changes: Changes, arguments: dict[str, Any]) -> nn.Module:
    """Replace the backbone by one of these arguments, and return it.

    Raises:
        ConfigError: it refuses them.
    """
    old = changes.get('model.backbone')
    carried = {key: old[key] for key in _CARRIED
               if old.get(key) not in (None, False, 3) and key not in arguments}
    module = build({**arguments, **carried}, 'xvit_mm')
    if 'drop_path_rate' not in arguments:
        carried['drop_path_rate'] = _drop_path_rate(module)
    changes.set('model.backbone', {**arguments, **carried}, _describe_removed(old))
    for key in carried:
        changes.explain(f'model.backbone.{key}', _CARRIED.get(
            key, 'Stochastic depth up to this rate, the default of the variant; raise it for '
            'long schedules, set 0 for short ones from scratch.'))
    if changes.get('model.pretrained') is not None:
        changes.set('model.pretrained', None, 'These were weights of the old backbone.')
    if str(changes.get('model.init_cfg.type', '')).startswith('Pretrained'):
        changes.set('model.init_cfg', None, 'These were weights with the old backbone.')
    if changes.get('load_from'):
        changes.set('load_from', None, 'This checkpoint has the old backbone.')
    if changes.get('resume'):
        changes.set('resume', False, 'A run with the old backbone cannot be resumed.')
    return module


def use_checkpoint(changes: Changes, checkpoint: str | None) -> None:
    """Initialise the backbone from a file, or explain how to."""
    if checkpoint is None:
        changes.explain('model.backbone', (
            'It starts from random weights. For pretrained ones, official files as released, add '
            "init_cfg=dict(type='Pretrained', checkpoint='FILE')."))
        return
    changes.set('model.backbone.init_cfg', dict(type='Pretrained', checkpoint=checkpoint),
                'Official files are understood as released.')


def _carry_norms(changes: Changes, old: dict[str, Any]) -> None:
    """Keep SyncBN where the old backbone had it and the new one takes a norm_cfg."""
    norm = old.get('norm_cfg') or {}
    if norm.get('type') == 'SyncBN' and changes.get('model.backbone.type') == 'xvit_mm.VTResNet':
        changes.set('model.backbone.norm_cfg', norm)
        changes.explain('model.backbone.norm_cfg', 'As before.')


def _drop_path_rate(module: nn.Module) -> float:
    default = inspect.signature(type(module)).parameters['drop_path_rate'].default
    return module.settings['drop_path_rate'] if default is None else default


def _maps_line(module: nn.Module) -> str:
    channels, strides = (', '.join(map(str, x)) for x in (module.out_channels, module.out_strides))
    return f'Channels {channels} at strides {strides}.'


def _describe_removed(old: dict[str, Any]) -> str:
    gone = ', '.join(key for key in old if key != 'type')
    text = f'In place of {old.get("type")}; its arguments are dropped ({gone or "none"}).'
    if old.get('frozen_stages', -1) >= 0:
        text += ' No stage is frozen; frozen_stages=n freezes the stem and n stages here.'
    return text
