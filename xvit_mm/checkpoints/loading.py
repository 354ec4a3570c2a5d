"""Loading official checkpoints into our modules, completely or not at all."""
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .errors import CheckpointError
from .names import StateDict, find_prefix, without_prefix
from .reading import find_state_dict, read_checkpoint

if TYPE_CHECKING:
    from xvit_mm.models.backbones import Backbone

# A tensor that tells a family which people are likely to mix up with ours.
_OTHER_FAMILIES = {
    'relative_position_bias_table': 'Swin Transformer',
    'patch_embed.0.proj.weight': 'CrossViT',
    'patch_embed.0.proj.0.weight': 'CrossViT',
    'patch_embed.projs.0.weight': 'CrossFormer',
    'layer1.0.conv1.weight': 'ResNet',
    'blocks.0.attn.qkv.weight': 'ViT or DeiT',
    'stages.0.0.dwconv.weight': 'ConvNeXt',
    'local_rep.0.conv.weight': 'MobileViT',
}


@dataclass
class LoadReport:
    """What became of every tensor of a checkpoint and of the module.

    loaded: names in the module. left_out: name in the checkpoint -> why, on purpose.
    fitted: those of the loaded that were made to fit another image size.
    missing: names in the module that the checkpoint lacks (never of the backbone).
    new: names in the backbone that the checkpoint need not have; they keep their values.
    unexpected: names in the checkpoint that fit nothing in the module.
    """

    model: str
    backbone_tensors: int
    loaded: list[str] = field(default_factory=list)
    fitted: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = self.backbone_tensors
        lines = [f'{self.model}: {total} of {total} backbone tensors loaded, '
                 f'{len(self.loaded) - total} others']
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f'  left out, {reason}: {_some(names)}' for reason, names in reasons.items()]
        lines += [f'  {kind}: {_some(names)}'
                  for kind, names in (('fitted to another image size', self.fitted),
                                      ('not in the checkpoint', self.missing),
                                      ('new, not in the checkpoint', self.new),
                                      ('fits nothing here', self.unexpected)) if names]
        return '\n'.join(lines)


def load_official(
    module: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    prefix: str | None = None,
    ema: bool = False,
) -> LoadReport:
    """Load a checkpoint of the official code, or of ours, and account for every tensor.

    Args:
        module: a backbone of this package, or a classifier, detector or segmentor that holds one.
        source: a path, an address or a state dict, in any of the released forms.
        prefix: take only the tensors under this prefix, as mmengine's `Pretrained` does.
        ema: prefer averaged weights, where a file has both.

    Raises:
        CheckpointError: unreadable, or of another model or variant, or a tensor of the backbone is
            not covered. Nothing has been loaded then.
        TypeError, ValueError: `module` holds no backbone of ours, or several.
    """
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source)
    state_dict = find_state_dict(checkpoint, ema=ema)
    if prefix is not None:
        state_dict = without_prefix(state_dict, prefix if prefix.endswith('.') else f'{prefix}.')
    where, backbone = find_backbone(module)
    own = module.state_dict()
    renamed, left_out, fitted = _in_our_names(backbone, where, set(own), state_dict)
    fitting = {}
    for name, tensor in renamed.items():
        if name in own and own[name].shape == tensor.shape:
            fitting[name] = tensor
        elif name in own:
            left_out[name] = f'other shape ({_shape(tensor)} in the file, {_shape(own[name])} here)'
    module.load_state_dict(fitting, strict=False)
    tensors = backbone.state_dict()
    # Whatever else the backbone has must have been there.
    new = {f'{where}{n}' for n in tensors} - set(fitting)
    return LoadReport(
        model=f'{type(backbone).__name__} {variant_name(backbone, tensors)}',
        backbone_tensors=len(tensors) - len(new),
        loaded=sorted(fitting),
        fitted=fitted,
        left_out=left_out,
        missing=sorted(set(own) - set(fitting) - set(left_out) - new),
        new=sorted(new),
        unexpected=sorted(set(renamed) - set(own)))


def translate(backbone: 'Backbone', state_dict: dict[str, Any], prefix: str) -> None:
    """Rename the official tensors of a backbone in place, among those under `prefix`.

    Called while a state dict is being loaded; a state dict without official names stays as it is.

    Raises:
        CheckpointError: the official tensors are of another variant, or some are missing.
    """
    names = backbone.official_names
    if names is None:
        return
    if not prefix and not any(isinstance(value, Tensor) for value in state_dict.values()):
        tensors = find_state_dict(state_dict) if state_dict else {}
        state_dict.clear()
        state_dict.update(tensors)
    found = find_prefix(state_dict, names.signature, within=prefix)
    if found is None or find_prefix(state_dict, names.own_signature, within=prefix) is not None:
        fitted = backbone.fit_weights(without_prefix(state_dict, prefix))
        state_dict.update({prefix + name: tensor for name, tensor in fitted.items()})
        return
    translation = names.translate(without_prefix(state_dict, found))
    tensors, _ = _fitted(backbone, translation.backbone)
    for name in [name for name in state_dict if name.startswith(found)]:
        del state_dict[name]
    state_dict.update({prefix + name: tensor for name, tensor in tensors.items()})


def find_backbone(module: nn.Module) -> tuple[str, 'Backbone']:
    """The one backbone of this package in `module`, and its prefix there."""
    from xvit_mm.models.backbones import Backbone
    found = [(name, m) for name, m in module.named_modules() if isinstance(m, Backbone)]
    if not found:
        raise TypeError(f'{type(module).__name__} holds no backbone of xvit_mm')
    if len(found) > 1:
        raise ValueError(
            f'{type(module).__name__} holds several backbones ({", ".join(n for n, _ in found)}): '
            'pass the one that is meant')
    name, backbone = found[0]
    return f'{name}.' if name else '', backbone


def check_coverage(backbone: 'Backbone', tensors: StateDict) -> None:
    """Raise a CheckpointError that names the variants unless every tensor is there and fits."""
    own = backbone.state_dict()
    optional = backbone.official_names.optional(own, tensors)
    missing = sorted(set(own) - set(tensors) - optional)
    unfit = sorted(n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape)
    extra = sorted(set(tensors) - set(own))
    if not missing and not unfit and not extra:
        return
    this, other = (variant_name(backbone, state) for state in (own, tensors))
    model = type(backbone).__name__
    what = (f'this is a checkpoint of {model} {other}, but the backbone is {model} {this}'
            if this != other else f'the checkpoint does not fit this {model} {this}')
    details = ((missing, 'missing'), (unfit, 'of another shape'), (extra, 'too many'))
    listed = '; '.join(f'{_some(names)} {kind}' for names, kind in details if names)
    raise CheckpointError(
        f'{what}: {len(own) - len(missing) - len(unfit)} of {len(own)} backbone tensors fit. '
        f'{listed}. Nothing was loaded')


def variant_name(backbone: 'Backbone', state_dict: StateDict) -> str:
    """The arch that tensors in our names belong to; its settings if it is none of the table's."""
    try:
        settings = backbone.official_names.settings(state_dict)
    except (KeyError, IndexError, AttributeError):
        return 'of an unknown variant'
    for name, variant in backbone.variants.items():
        if all(variant.get(key) == value for key, value in settings.items()):
            return repr(name)
    return '(' + ', '.join(f'{key}={value}' for key, value in settings.items()) + ')'


def _in_our_names(
    backbone: 'Backbone', where: str, own: set[str], state_dict: StateDict
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Tensors named as in the module, with names `own`, reasons for those left out, and names of
    those made to fit.

    `where` is the prefix of the backbone in the module. The backbone is complete.
    """
    names = backbone.official_names
    ours = find_prefix(state_dict, names.own_signature)
    # With us an official name may stand under a prefix, as ResNet's in VT-ResNet.
    official = find_prefix(state_dict, names.signature) if ours is None else None
    if official is None and ours is None:
        raise CheckpointError(_not_ours(names.model, state_dict))
    found = official if official is not None else ours
    rest = {n: t for n, t in state_dict.items() if not n.startswith(found)} if found else {}
    tensors = without_prefix(state_dict, found)
    left_out = {}
    if official is not None:
        translation = names.translate(tensors)
        tensors = translation.backbone
        left_out = dict.fromkeys(translation.derived, 'derived from the weights')
        left_out |= dict.fromkeys(translation.replaced, 'of layers that this model replaces')
        head = {f'head.{n}': t for n, t in translation.head.items()}
        left_out |= dict.fromkeys(set(head) - own, 'the classification head')
        rest |= {n: t for n, t in head.items() if n in own} | translation.other
    elif not found:
        parts = {name.split('.')[0] for name in backbone.state_dict()}
        rest = {n: t for n, t in tensors.items()
                if n.split('.')[0] not in parts and not names.is_new(n)}
        tensors = {n: t for n, t in tensors.items() if n not in rest}
    shapes = {n: t.shape for n, t in tensors.items()}
    tensors, not_built = _fitted(backbone, tensors)
    fitted = [f'{where}{n}' for n, t in tensors.items() if t.shape != shapes[n]]
    left_out |= not_built
    # A detection checkpoint may sit under `module.` or `model.` as a whole.
    outer = found.removesuffix('backbone.') if found else ''
    rest = {n.removeprefix(outer): t for n, t in rest.items()}
    return {f'{where}{n}': t for n, t in tensors.items()} | rest, left_out, fitted


def _fitted(backbone: 'Backbone', tensors: StateDict) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that cover the backbone, and reasons for those of parts that it does not build."""
    own, not_built = backbone.state_dict(), {}
    optional = backbone.official_names.optional(own, tensors)
    for name in sorted(set(tensors) - set(own)):
        stage = backbone.official_names.stage(name)
        if stage is not None and stage >= backbone.num_stages:
            not_built[name] = 'of stages that out_indices does not need'
        elif name in optional:
            not_built[name] = 'of maps that this backbone does not return'
    kept = backbone.fit_weights({n: t for n, t in tensors.items() if n not in not_built})
    check_coverage(backbone, kept)
    return dict(kept), not_built


def _not_ours(model: str, state_dict: StateDict) -> str:
    family = next((family for part, family in _OTHER_FAMILIES.items()
                   if any(part in name for name in state_dict)), None)
    guess = f'it looks like {family}' if family else f'its tensors are {_some(list(state_dict))}'
    return f'this is not a checkpoint of {model}: {guess}. Nothing was loaded'


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more}'


def _shape(tensor: Tensor) -> str:
    return ' x '.join(map(str, tensor.shape)) or 'scalar'
