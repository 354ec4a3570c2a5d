"""Optimizer settings: AdamW, parameters without decay, absolute rates of the schedule."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from xvit_mm.utils.config import ConfigError

from .backbones import BACKBONES, Recipe, recipe_for
from .changes import Changes
from .necks import short_name

_DEFAULT_CONSTRUCTORS = (None, 'DefaultOptimWrapperConstructor')
# Entries of a schedule that are learning rates, not factors of one.
_ABSOLUTE_RATES = ('eta_min', 'eta_max')
_WHOLE = 'backbone'


def swap_optimizer(changes: Changes, scope: str, build_model: Callable[[], nn.Module]) -> None:
    """Set AdamW with the learning rate and decay rules of the new backbone.

    `build_model` gives the model that they describe: where the user has rules for parameters, their
    names decide which still apply. An AdamW of the user's own stays, and so do clipping, mixed
    precision and accumulation.

    Raises:
        ConfigError: there are several optimizers.
    """
    if not changes.has('optim_wrapper'):
        return
    if not isinstance(changes.get('optim_wrapper.optimizer'), dict):
        raise ConfigError(
            'optim_wrapper has no single optimizer; --keep-optimizer leaves it as it is')
    kind = changes.get('model.backbone.type')
    recipe = recipe_for(kind, scope, short_name(changes.get('model.decode_head')))
    before = dict(changes.get('optim_wrapper.optimizer'))
    _set_adamw(changes, recipe)
    _scale_schedule(changes, before.get('lr'))
    # The user's own rules go with an optimizer of the user's own.
    kept = short_name(before) == 'AdamW' and (
        changes.get('optim_wrapper.constructor') in _DEFAULT_CONSTRUCTORS)
    _set_decay(changes, kind, build_model, kept=kept)


def no_decay_keys(model: nn.Module, no_decay: Sequence[str]) -> list[str]:
    """Return short custom_keys that match exactly the backbone's parameters without weight decay.

    Longer than `backbone`, because mmengine lets the longest matching key decide.
    """
    names = {name: parameter.ndim for name, parameter in model.named_parameters()}
    meant = [name for name, ndim in names.items() if name.startswith(f'{_WHOLE}.')
             and (ndim == 1 or any(part in name for part in no_decay))]
    others = set(names) - set(meant)
    keys: list[str] = []
    for name in meant:
        if any(key in name for key in keys):
            continue
        keys.append(next(key for key in _endings(name)
                         if len(key) > len(_WHOLE) and not any(key in other for other in others)))
    return sorted(keys)


def _set_adamw(changes: Changes, recipe: Recipe) -> None:
    place = 'optim_wrapper.optimizer'
    now = changes.get(place)
    if short_name(now) == 'AdamW':
        changes.explain('optim_wrapper', (
            f'The present AdamW stays, with its learning rate of {now.get("lr")}. '
            f'For comparison, {recipe.source}: {recipe.lr} for {recipe.batch} images.'))
        return
    base = changes.get('auto_scale_lr.base_batch_size')
    lr = _round(recipe.lr * (base or recipe.batch) / recipe.batch)
    changes.set(place, dict(type='AdamW', lr=lr, weight_decay=recipe.weight_decay), (
        f'In place of {now.get("type")} at {now.get("lr")}: learning rate and weight decay of '
        f'{recipe.source}, for a batch of {base or recipe.batch} images'
        f'{", the auto_scale_lr.base_batch_size" if base else "; scale it with yours"}.'))


def _scale_schedule(changes: Changes, before: Any) -> None:
    """Keep the schedule, but with its absolute rates in proportion to the new learning rate."""
    now = changes.get('optim_wrapper.optimizer.lr')
    schedule = changes.get('param_scheduler')
    if not schedule or not isinstance(before, (int, float)) or now == before:
        return
    listed = schedule if isinstance(schedule, list) else [schedule]
    for i, step in enumerate(listed):
        place = f'param_scheduler.{i}' if isinstance(schedule, list) else 'param_scheduler'
        for key in _ABSOLUTE_RATES:
            if step.get(key):
                changes.set(f'{place}.{key}', _round(step[key] * now / before), (
                    f'The schedule stays; only {key}, a learning rate, is scaled down with the '
                    f'optimizer\'s (from {before} to {now}).'))


def _set_decay(
    changes: Changes, kind: str, build_model: Callable[[], nn.Module], *, kept: bool
) -> None:
    place = 'optim_wrapper.paramwise_cfg'
    if changes.get('optim_wrapper.constructor') not in _DEFAULT_CONSTRUCTORS:
        changes.set('optim_wrapper.constructor', 'DefaultOptimWrapperConstructor',
                    'The present one knows only the layers of the old backbone.')
    old = changes.get(place) or {} if kept else _multipliers(changes.get(place) or {})
    custom, keys = {}, BACKBONES[kind].no_decay
    if given := old.get('custom_keys'):
        model = build_model()
        names = [name for name, _ in model.named_parameters()]
        custom = {key: value for key, value in given.items()
                  if not key.startswith(f'{_WHOLE}.') and any(key in name for name in names)}
        keys = no_decay_keys(model, keys) if _WHOLE in custom else keys
    lr_mult = custom.get(_WHOLE, {}).get('lr_mult', 1.)
    rule = dict(decay_mult=0.) if lr_mult == 1. else dict(lr_mult=lr_mult, decay_mult=0.)
    custom |= dict.fromkeys(keys, rule)
    new = {key: value for key, value in old.items() if key == 'bypass_duplicate'}
    new |= dict(flat_decay_mult=0.) | (dict(custom_keys=custom) if custom else {})
    changes.set(place, new)
    _explain_decay(changes, place, keys, whole=_WHOLE in custom)


def _explain_decay(changes: Changes, place: str, keys: Sequence[str], *, whole: bool) -> None:
    changes.explain(place, (
        'No weight decay for norms, biases and everything else of one dimension'
        f'{", nor for what the keys name" if keys else ""}. Rules for parameters that are no '
        'longer there have gone.'))
    if whole:
        changes.explain(f'{place}.custom_keys', (
            "mmengine lets the longest matching key decide: those of the backbone's norms "
            "and biases repeat the lr_mult of 'backbone'."))


def _multipliers(paramwise: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rules of the old optimizer that scale rates of parts of the model."""
    custom = {key: {'lr_mult': value['lr_mult']}
              for key, value in paramwise.get('custom_keys', {}).items() if 'lr_mult' in value}
    return dict(custom_keys=custom) if custom else {}


def _endings(name: str) -> Iterator[str]:
    """Yield ever longer endings of a name: `norm1.weight`, `blocks.0.norm1.weight`, ..."""
    parts = name.split('.')
    for start in reversed(range(len(parts))):
        if not parts[start].isdigit():
            yield '.'.join(parts[start:])


def _round(rate: float) -> float:
    return float(f'{rate:.6g}')
