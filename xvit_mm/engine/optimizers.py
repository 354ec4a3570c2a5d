"""Optimizer settings per parameter: learning rates by depth, weight decay where it belongs."""
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.utils import digit_version
from torch import nn

from xvit_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from xvit_mm.utils.config import ConfigError


OPTIONS = ('layer_decay_rate', 'decay_weights_only')
MMENGINE_OPTIONS = (
    'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult',
    'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate')
# What mmengine leaves in a group although it has been applied.
APPLIED = ('lr_mult', 'decay_mult')
BACKBONE = 'backbone.'
FUSED = ('Adam', 'AdamW', 'SGD')


def fuse_on_cpu(optim_wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an optimizer wrapper with a step in one operation, on a CPU.

    torch's default there is a loop over the parameters, which takes 4 times as long for AdamW and a
    small detector. Settings that choose between the ways stay as they are, and so do all before
    torch 2.4, which has no such step.
    """
    optimizer = optim_wrapper.get('optimizer')
    if (get_device() != 'cpu' or digit_version(torch.__version__) < digit_version('2.4')
            or not isinstance(optimizer, Mapping) or optimizer.get('type') not in FUSED
            or {'fused', 'foreach', 'differentiable'} & set(optimizer)):
        return dict(optim_wrapper)
    return dict(optim_wrapper, optimizer=dict(optimizer, fused=True))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with learning rates by depth, and with few parameter groups.

    For a detector, segmentor or classifier, wrapped for distributed training or not:

        optim_wrapper = dict(
            constructor='xvit_mm.OptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay_rate=0.75, decay_weights_only=True))

    `paramwise_cfg` has all entries of mmengine's constructor and two more:

    - `layer_decay_rate`: layer i of n of `model.backbone`, as its `get_layer_depth` counts them,
      learns at rate ** (n - 1 - i) of its learning rate. Necks and heads keep theirs.
    - `decay_weights_only`: weight decay is for parameters named `weight` that have two dimensions
      or more. Norms, biases, class tokens, position embeddings, temperatures and layer scales are
      free of it, as in the recipes of DeiT and Swin. The network that computes
      CrossFormer's position bias is made of ordinary layers and counts as such. Only a `decay_mult`
      in `custom_keys` overrides this.

    Parameters of equal settings share a group: mmengine gives each parameter a group of its own,
    which costs fused and foreach optimizers their advantage. Groups at the base learning rate come
    first, so that it is what the logs show as `lr`.

    Raises:
        ConfigError: an unknown entry, a rate outside (0, 1], a missing `lr` or `weight_decay`, a
            backbone without `get_layer_depth`, or a parameter that the model holds twice.
    """

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Append the groups of a module and its children to `params`."""
        super().add_params(params, module, prefix=prefix, is_dcn_module=is_dcn_module)
        # mmengine descends through this method; only the whole model has no prefix.
        if not prefix:
            params[:] = self._merged(self._settled(params, module))
            print_log(_summary(params), logger='current')

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        known = OPTIONS + MMENGINE_OPTIONS
        for name in self.paramwise_cfg:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                raise ConfigError(
                    f'paramwise_cfg has no entry {name!r}; '
                    f'{f"did you mean {close[0]!r}? " if close else ""}It takes {", ".join(known)}')
        self.rate = self.paramwise_cfg.get('layer_decay_rate', 1.)
        if not 0 < self.rate <= 1:
            raise ConfigError(
                f'layer_decay_rate={self.rate}: give a number above 0 and up to 1, where 1 is the '
                'same learning rate for all layers')
        if self.rate < 1 and self.base_lr is None:
            raise ConfigError('layer_decay_rate needs optimizer.lr in the optim_wrapper')
        self.weights_only = self.paramwise_cfg.get('decay_weights_only', False)
        if self.weights_only and self.base_wd is None:
            raise ConfigError(
                'decay_weights_only needs optimizer.weight_decay in the optim_wrapper')

    def _settled(self, groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
        """mmengine's groups of one parameter each, with every setting spelled out."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        _check_unique([names[id(group['params'][0])] for group in groups])
        settled = []
        for group in groups:
            name, parameter = names[id(group['params'][0])], group['params'][0]
            base = dict(lr=self.base_lr, weight_decay=self.base_wd)
            group = {k: v for k, v in base.items() if v is not None} | group
            if self.rate < 1:
                group['lr_scale'] = self._layer_scale(model, name)
                group['lr'] *= group['lr_scale']
            is_weight = parameter.ndim > 1 and 'weight' in name.rpartition('.')[2]
            if self.weights_only and not is_weight and 'decay_mult' not in group:
                group['weight_decay'] = 0.
            settled.append(group)
        return settled

    def _merged(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        merged: dict[str, dict[str, Any]] = {}
        for group in groups:
            settings = {k: v for k, v in group.items() if k not in ('params', *APPLIED)}
            key = repr(sorted(settings.items()))
            merged.setdefault(key, dict(params=[], **settings))['params'] += group['params']
        return sorted(merged.values(), key=lambda group: group.get('lr') != self.base_lr)

    def _layer_scale(self, model: nn.Module, name: str) -> float:
        backbone = getattr(model, BACKBONE[:-1], None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ConfigError(
                f'layer_decay_rate={self.rate} asks for model.backbone.get_layer_depth, which '
                f'{type(model).__name__} with backbone {type(backbone).__name__} does not have: '
                'take a backbone of xvit_mm or mmpretrain, or leave layer_decay_rate out')
        if not name.startswith(BACKBONE):
            return 1.
        layer, num_layers = backbone.get_layer_depth(name, BACKBONE)
        return self.rate**(num_layers - 1 - layer)


def _check_unique(names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f'the model holds {", ".join(twice)} more than once: set '
            'paramwise_cfg=dict(bypass_duplicate=True)')


def _summary(groups: list[dict[str, Any]]) -> str:
    lines = [f'{sum(len(g["params"]) for g in groups)} parameters in {len(groups)} groups']
    for group in groups:
        settings = ', '.join(f'{k}={v:.3g}' if isinstance(v, float) else f'{k}={v}'
                             for k, v in group.items() if k != 'params')
        lines.append(f'    {len(group["params"]):>4} with {settings or "the defaults"}')
    return '\n'.join(lines)
