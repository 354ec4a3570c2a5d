"""Loading official checkpoints into our modules, completely or not at all."""
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checks import check_coverage, check_kinds, check_settings, check_values, some, variant_name
from .errors import CheckpointError
from .names import OfficialBackbone, OfficialNames, StateDict, find_prefix, without_prefix
from .reading import find_state_dict, read_checkpoint

OTHER_SHAPE = 'other shape'

# Tensors that identify other families, whose files are easily mistaken for these.
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
        lines += [f'  left out, {reason}: {some(names)}' for reason, names in reasons.items()]
        lines += [f'  {kind}: {some(names)}'
                  for kind, names in (('fitted to another image size', self.fitted),
                                      ('not in the checkpoint', self.missing),
                                      ('new, not in the checkpoint', self.new),
                                      ('fits nothing here', self.unexpected)) if names]
        return '\n'.join(lines)

    def misfits(self) -> str:
        """What keeps a file from being that of the whole model; empty if nothing does."""
        # Older files neither count batches nor record settings; neither changes the results.
        missing = [name for name in self.missing
                   if not name.endswith(('num_batches_tracked', '_extra_state'))]
        reshaped = [n for n, reason in self.left_out.items() if reason.startswith(OTHER_SHAPE)]
        kinds = ((missing, 'of the model not in the file'), (reshaped, 'of another shape'),
                 (self.unexpected, 'of the file not in the model'))
        return '; '.join(f'{some(names)} {kind}' for names, kind in kinds if names)


def load_official(
    module: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    prefix: str | None = None,
    ema: bool = False,
    strict: bool = False,
) -> LoadReport:
    """Load a checkpoint of the official code or of this package, and account for every tensor.

    Everything is checked before anything is copied.

    Args:
        module: a backbone of this package, or a classifier, detector or segmentor that holds one.
        source: a path, an address or a state dict, in any of the released forms.
        prefix: take only the tensors under this prefix, as mmengine's `Pretrained` does.
        ema: prefer averaged weights, where a file has both.
        strict: the whole module must be covered, neck and heads too, and nothing may be left over;
            for files of whole models, whose names in mmdet 2.x and mmseg 0.x are those of today.

    Raises:
        CheckpointError: unreadable, or of another model or variant, or a tensor of the backbone is
            not covered, or a tensor is of a kind or has values that no weights have. Nothing has
            been loaded then.
        NoBackbone: `module` holds no backbone of this package; a TypeError.
        SeveralBackbones: it holds several, and the file does not have each under its name; a
            CheckpointError and ValueError.
    """
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source)
    state_dict = find_state_dict(checkpoint, ema=ema)
    if prefix is not None:
        state_dict = without_prefix(state_dict, prefix if prefix.endswith('.') else f'{prefix}.')
    return load_tensors(module, state_dict, strict=strict)


def load_tensors(
    module: nn.Module, state_dict: dict[str, Tensor], *, strict: bool = False
) -> LoadReport:
    """`load_official` for the tensors alone, as `find_state_dict` returns them."""
    backbones = find_backbones(module)
    own = module.state_dict()
    renamed = _rename(module, backbones, set(own), state_dict)
    fitting = OrderedDict()
    for name, tensor in renamed.tensors.items():
        if name in own and own[name].shape == tensor.shape:
            fitting[name] = tensor
        elif name in own:
            renamed.left_out[name] = (
                f'{OTHER_SHAPE} ({_shape(tensor)} in the file, {_shape(own[name])} here)')
    report = _report(backbones, own, renamed, fitting)
    if strict and (misfits := report.misfits()):
        raise CheckpointError(
            f'the checkpoint does not cover the whole {type(module).__name__}: {misfits}. Weights '
            'of only a backbone are for tools/train.py --pretrained. Nothing was loaded')
    check_kinds(fitting, own)
    check_values(fitting, own)
    check_settings(fitting, module)
    # By their versions modules understand their own older names.
    fitting._metadata = getattr(state_dict, '_metadata', OrderedDict())  # type: ignore
    module.load_state_dict(fitting, strict=False)
    return report


def translate(backbone: OfficialBackbone, state_dict: dict[str, Any], prefix: str) -> None:
    """Rename the official tensors of a backbone in place, among those under `prefix`.

    Called while a state dict is being loaded; a state dict without official names stays as it is.

    Raises:
        CheckpointError: the official tensors are of another variant, or some are missing.
    """
    names = backbone.official_names
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
    tensors, _ = _fit(backbone, translation.backbone)
    check_values(tensors, backbone.state_dict())
    for name in [name for name in state_dict if name.startswith(found)]:
        del state_dict[name]
    state_dict.update({prefix + name: tensor for name, tensor in tensors.items()})


class NoBackbone(TypeError):
    """A module holds no backbone of this package."""


class SeveralBackbones(CheckpointError, ValueError):
    """A module holds several backbones, and a checkpoint does not have each under its name."""


Backbones = dict[str, OfficialBackbone]


def find_backbones(module: nn.Module) -> Backbones:
    """The backbones of this package in a module, by their prefixes there.

    Raises:
        NoBackbone: there are none.
    """
    found = {f'{name}.' if name else '': part for name, part in module.named_modules()
             if isinstance(getattr(part, 'official_names', None), OfficialNames)}
    if not found:
        raise NoBackbone(f'{type(module).__name__} holds no backbone of xvit_mm')
    return found


@dataclass
class _Renamed:
    """Tensors named as in the module, reasons for others, and names of those made to fit."""

    tensors: dict[str, Tensor]
    left_out: dict[str, str] = field(default_factory=dict)
    fitted: list[str] = field(default_factory=list)


def _rename(
    module: nn.Module, backbones: Backbones, own: set[str], state_dict: StateDict
) -> _Renamed:
    """Name the tensors as the module, which has tensors of the names `own`, does.

    Each backbone is complete then.
    """
    if len(backbones) == 1:
        (where, backbone), = backbones.items()
        return _rename_around(where, backbone, own, state_dict)
    renamed = _Renamed({name.removeprefix('module.'): t for name, t in state_dict.items()})
    for where, backbone in backbones.items():
        if where + backbone.official_names.own_signature not in renamed.tensors:
            raise SeveralBackbones(
                f'{type(module).__name__} holds several backbones '
                f'({", ".join(name.rstrip(".") for name in backbones)}), and the checkpoint does '
                'not have each under its name: load into the one that is meant')
        fitted, not_built = _fit(backbone, without_prefix(renamed.tensors, where))
        outside = {n: t for n, t in renamed.tensors.items() if not n.startswith(where)}
        renamed.tensors = outside | {f'{where}{name}': t for name, t in fitted.items()}
        renamed.left_out |= {f'{where}{name}': reason for name, reason in not_built.items()}
    return renamed


def _rename_around(
    where: str, backbone: OfficialBackbone, own: set[str], state_dict: StateDict
) -> _Renamed:
    """Name the tensors as a module does whose only backbone has the prefix `where`."""
    prefix, is_official = _find_backbone_in(state_dict, backbone.official_names)
    inside = without_prefix(state_dict, prefix)
    outside = {n: t for n, t in state_dict.items() if prefix and not n.startswith(prefix)}
    if is_official:
        tensors, others, left_out = _from_official_names(backbone.official_names, inside, own)
    else:
        tensors, others = inside, {}
        left_out = {}
        if not prefix:
            tensors, others = _split_by_parts(backbone, inside)
    fitted, not_built = _fit(backbone, tensors)
    # A detection checkpoint may stand under `module.` or `model.` as a whole.
    outer = prefix.removesuffix('backbone.')
    return _Renamed(
        tensors={f'{where}{n}': t for n, t in fitted.items()}
        | {n.removeprefix(outer): t for n, t in (outside | others).items()},
        left_out=left_out | not_built,
        fitted=[f'{where}{n}' for n, t in fitted.items() if t.shape != tensors[n].shape])


def _find_backbone_in(state_dict: StateDict, names: OfficialNames) -> tuple[str, bool]:
    """The prefix of the backbone in a state dict, and whether its names are the official ones.

    Raises:
        CheckpointError: there is no such backbone; says what it looks like.
    """
    # Own names first: official ones may be part of them, as ResNet's are in VT-ResNet.
    for signature, is_official in ((names.own_signature, False), (names.signature, True)):
        prefix = find_prefix(state_dict, signature)
        if prefix is not None:
            return prefix, is_official
    raise CheckpointError(_not_ours(names.model, state_dict))


def _from_official_names(
    names: OfficialNames, state_dict: StateDict, own: set[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """The backbone's tensors in our names, those of other parts, and reasons for the rest."""
    translation = names.translate(state_dict)
    head = {f'head.{name}': tensor for name, tensor in translation.head.items()}
    others = {name: tensor for name, tensor in head.items() if name in own}
    left_out = {
        **dict.fromkeys(translation.derived, 'derived from the weights'),
        **dict.fromkeys(translation.replaced, 'of layers that this model replaces'),
        **dict.fromkeys(head.keys() - own, 'the classification head')}
    return translation.backbone, others | translation.other, left_out


def _split_by_parts(
    backbone: OfficialBackbone, state_dict: StateDict
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's tensors and others, where no prefix tells them apart."""
    parts = {name.split('.')[0] for name in backbone.state_dict()}
    inside = {n: t for n, t in state_dict.items()
              if n.split('.')[0] in parts or backbone.official_names.is_new(n)}
    return inside, {n: t for n, t in state_dict.items() if n not in inside}


def _fit(
    backbone: OfficialBackbone, tensors: StateDict
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that cover the backbone, and reasons for those of parts that it does not build."""
    own, not_built = backbone.state_dict(), {}
    optional = backbone.official_names.optional(own, tensors)
    for name in sorted(set(tensors) - set(own)):
        stage = backbone.official_names.stage(name)
        if stage is not None and stage >= backbone.num_stages:
            not_built[name] = 'of stages that out_indices does not need'
        elif name in optional:
            not_built[name] = 'of maps that this backbone does not return'
    kept = {name: tensor for name, tensor in tensors.items() if name not in not_built}
    check_kinds(kept, own)
    fitted = backbone.fit_weights(kept)
    check_coverage(backbone, fitted)
    return dict(fitted), not_built


def _report(
    backbones: Backbones, own: StateDict, renamed: _Renamed, fitting: StateDict
) -> LoadReport:
    tensors = {where: backbone.state_dict() for where, backbone in backbones.items()}
    in_backbones = {f'{where}{name}' for where, names in tensors.items() for name in names}
    # What else a backbone has must have been there.
    new = in_backbones - set(fitting)
    return LoadReport(
        model=', '.join(f'{type(backbone).__name__} {variant_name(backbone, tensors[where])}'
                        for where, backbone in backbones.items()),
        backbone_tensors=len(in_backbones) - len(new),
        loaded=sorted(fitting),
        fitted=renamed.fitted,
        left_out=renamed.left_out,
        missing=sorted(set(own) - set(fitting) - set(renamed.left_out) - new),
        new=sorted(new),
        unexpected=sorted(set(renamed.tensors) - set(own)))


def _not_ours(model: str, state_dict: StateDict) -> str:
    family = next((family for part, family in _OTHER_FAMILIES.items()
                   if any(part in name for name in state_dict)), None)
    guess = f'it looks like {family}' if family else f'its tensors are {some(list(state_dict))}'
    return f'this is not a checkpoint of {model}: {guess}. Nothing was loaded'


def _shape(tensor: Tensor) -> str:
    return ' x '.join(map(str, tensor.shape)) or 'scalar'
