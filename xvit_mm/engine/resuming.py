"""Whether a run can be resumed, and from which checkpoint."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from xvit_mm.checkpoints import CheckpointError

STATE = 'resuming'  # in a checkpoint: random states and position in the data

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
