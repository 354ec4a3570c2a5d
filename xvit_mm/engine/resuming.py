"""Whether a run can be resumed, and from which checkpoint."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from xvit_mm.checkpoints import CheckpointError

STATE = 'resuming'  # in a checkpoint: random states and position in the data

# What changes in the course of a training, or does not change its results.
_NO_SETTINGS = {'params', 'lr', 'momentum', 'betas', 'fused', 'foreach', 'capturable',
                'differentiable', 'base_values', 'verbose', 'last_step', '_global_step', '_last_value'}
# In the states of optimizers, what has a value for each of a parameter.
_LIKE_PARAMETERS = ('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer', 'square_avg')
_NEEDED = ('state_dict', 'meta', 'message_hub')


def newest_readable(
    paths: Sequence[Path],
    read: Callable[[str], Mapping[str, Any]],
    warn: Callable[[str], None],
) -> Path | None:
    """Return the first checkpoint that a run can resume from, None if there are none at all.

    Raises:
        CheckpointError: there are some, and none of them can be read.
    """
    reasons = []
    for path in paths:
        try:
            check_training_state(path, read(str(path)))
        except (CheckpointError, OSError) as error:
            reasons.append(str(error))
            warn(f'not resumed from: {error}')
        else:
            return path
    if reasons:
        raise CheckpointError(
            f'none of the {len(reasons)} checkpoints in {paths[0].parent} can be resumed from:\n'
            + '\n'.join(f'  {reason}' for reason in reasons)
            + '\nTo begin again and overwrite them, add --overwrite')
    return None


def check_training_state(path: str | Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise a CheckpointError unless a run can be resumed from a checkpoint."""
    missing = [entry for entry in _NEEDED if entry not in checkpoint]
    meta = checkpoint.get('meta')
    if not missing and not {'epoch', 'iter'} <= set(meta if isinstance(meta, Mapping) else ()):
        missing = ['meta.epoch and meta.iter']
    for name, value in checkpoint.get('state_dict', {}).items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.isnan().any():
            raise CheckpointError(f'{path} holds NaN, the first in {name}: its training diverged')
    if missing:
        raise CheckpointError(
            f'{path} holds weights but no training to go on with (it lacks {", ".join(missing)}). '
            'To start from its weights: --cfg-options load_from=FILE, without --resume')


def check_model(path: str | Path, state_dict: Mapping[str, Any], model: nn.Module) -> None:
    """Raise a CheckpointError if tensors of a checkpoint have other shapes than in the model."""
    for name, tensor in model.state_dict().items():
        saved = state_dict.get(name)
        if isinstance(saved, Tensor) and saved.shape != tensor.shape:
            raise CheckpointError(
                f'{path} is of another model: {name} has {_shape(saved)} values there and '
                f'{_shape(tensor)} here. {_from_weights(path)}')


def check_optimizer(path: str | Path, wrapper: OptimWrapper | OptimWrapperDict) -> None:
    """Raise a CheckpointError if the state that an optimizer has loaded is of other parameters.

    A checkpoint knows parameters by their order alone, and torch does not compare shapes.
    """
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    for optimizer in (w.optimizer for w in wrappers):
        for parameter, state in optimizer.state.items():
            for name in _LIKE_PARAMETERS:
                saved = state.get(name)
                if isinstance(saved, Tensor) and saved.shape != parameter.shape:
                    raise CheckpointError(
                        f'{path} holds {_shape(saved)} values of {name} for a parameter of '
                        f'{_shape(parameter)}: its optimizer had the parameters in another order. '
                        f'{_from_weights(path)}')


def other_groups(path: str | Path, error: ValueError) -> CheckpointError:
    """What an optimizer says to a state with other groups of parameters."""
    return CheckpointError(
        f'{path} is of a run with other groups of parameters, as by paramwise_cfg or '
        f'frozen_stages ({error}). {_from_weights(path)}')


def schedule_settings(runner: Runner) -> dict[str, list[Any]]:
    """The settings of optimizer and schedulers that resuming takes from a checkpoint.

    By names such as `weight_decay of the optimizer`, with a value for each group of parameters.
    """
    settings: dict[str, list[Any]] = {}
    if isinstance(runner.optim_wrapper, OptimWrapper):
        for group in runner.optim_wrapper.param_groups:
            _collect(settings, 'the optimizer', group)
    schedulers = runner.param_schedulers
    for scheduler in schedulers if isinstance(schedulers, list) else ():
        _collect(settings, type(scheduler).__name__, vars(scheduler))
    return settings


def overridden(given: Mapping[str, list[Any]], resumed: Mapping[str, list[Any]]) -> Iterator[str]:
    """A line for each setting of a config that a checkpoint has overridden."""
    for name, values in resumed.items():
        pairs = [(saved, wanted) for saved, wanted in zip(values, given.get(name, ()))
                 if saved != wanted]
        if pairs:
            saved, wanted = pairs[0]
            others = f', and {len(pairs) - 1} more' if len(pairs) > 1 else ''
            yield f'{name}: {saved!r} (config: {wanted!r}){others}'


def _from_weights(path: str | Path) -> str:
    return f'To train from its weights: --cfg-options load_from={path}, without --resume'


def _shape(tensor: Tensor) -> str:
    return ' x '.join(map(str, tensor.shape)) or '1'


def _collect(settings: dict[str, list[Any]], owner: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name not in _NO_SETTINGS and isinstance(value, (int, float, str, list, tuple, dict)):
            settings.setdefault(f'{name} of {owner}', []).append(value)
