"""What tensors must be before they are copied into a model."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .errors import CheckpointError
from .names import OfficialBackbone, StateDict


def check_coverage(backbone: OfficialBackbone, tensors: StateDict) -> None:
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
    listed = '; '.join(f'{some(names)} {kind}' for names, kind in details if names)
    raise CheckpointError(
        f'{what}: {len(own) - len(missing) - len(unfit)} of {len(own)} backbone tensors fit. '
        f'{listed}. Nothing was loaded')


def check_kinds(tensors: StateDict, own: StateDict) -> None:
    """Raise a CheckpointError unless what goes into `own` is dense, real and of its kind."""
    for name, tensor in tensors.items():
        if name in own and (kind := _foreign_kind(tensor, own[name])):
            raise CheckpointError(
                f'{name} is {kind} in the checkpoint, but {own[name].dtype} here. Save the '
                'checkpoint with ordinary dense tensors. Nothing was loaded')


def _foreign_kind(tensor: Tensor, own: Tensor) -> str | None:
    if tensor.is_quantized:
        return f'quantised ({tensor.dtype})'
    if tensor.is_nested or tensor.layout != torch.strided:
        return f'not dense ({"nested" if tensor.is_nested else tensor.layout})'
    if tensor.is_meta and not own.is_meta:
        return 'a meta tensor, without values,'
    if own.is_floating_point() and not tensor.is_floating_point():
        return str(tensor.dtype)
    return None


def check_values(tensors: StateDict, own: StateDict) -> None:
    """Raise a CheckpointError unless all values are finite in the precision of `own`."""
    wrong = [
        name for name, tensor in tensors.items()
        if name in own and own[name].is_floating_point() and not tensor.is_meta
        and not _is_finite(tensor.to(own[name].dtype))]
    if wrong:
        more = f', the first of {len(wrong)} such tensors,' if len(wrong) > 1 else ''
        raise CheckpointError(
            f'{wrong[0]}{more} has values that are NaN or infinite: the run that wrote this '
            'checkpoint had diverged, or the file is damaged. Nothing was loaded')


def check_settings(tensors: StateDict, module: nn.Module) -> None:
    """Raise a CheckpointError if a part of the module refuses settings saved with its weights."""
    for name, part in module.named_modules():
        state = tensors.get(f'{name}._extra_state' if name else '_extra_state')
        if state is not None and hasattr(part, 'check_settings'):
            try:
                part.check_settings(state)
            except CheckpointError as error:
                raise CheckpointError(f'{error}. Nothing was loaded') from None


def _is_finite(tensor: Tensor) -> bool:
    # A sum is several times as fast, and finite only if all values are.
    total = tensor.sum(dtype=torch.float64)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def variant_name(backbone: OfficialBackbone, state_dict: StateDict) -> str:
    """The arch that tensors in our names belong to; its settings if it is none of the table's."""
    try:
        settings = backbone.official_names.settings(state_dict)
    except (KeyError, IndexError, AttributeError):
        return 'of an unknown variant'
    for name, variant in backbone.variants.items():
        if all(variant.get(key) == value for key, value in settings.items()):
            return repr(name)
    return '(' + ', '.join(f'{key}={value}' for key, value in settings.items()) + ')'


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more}'
