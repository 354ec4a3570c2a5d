"""Loading the weights of a whole detector, segmentor or classifier: all of them, or an error."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from .errors import CheckpointError
from .loading import LoadReport, find_backbone, load_official
from .reading import find_state_dict

# Counted since torch 0.4.1; not needed for predictions.
_UNIMPORTANT = 'num_batches_tracked'


def load_whole_model(model: nn.Module, contents: Mapping[str, Any], source: str | Path) -> None:
    """Load a checkpoint, official or of a training, into a model: heads and necks too.

    Args:
        model: of mmdet, mmseg or mmpretrain, with any backbone.
        contents: of the checkpoint, as `read_checkpoint` gives them.
        source: where they are from, for messages.

    Raises:
        CheckpointError: a tensor of the model is not in the checkpoint or has another shape, or the
            checkpoint has tensors that do not belong to the model.
    """
    try:
        find_backbone(model)
    except (TypeError, ValueError):
        _load_by_name(model, contents, source)
        return
    report = load_official(model, contents)
    check_whole_model(report, model, source)
    print_log(str(report), logger='current')


def check_whole_model(report: LoadReport, model: nn.Module, source: str | Path) -> None:
    """Raise a CheckpointError unless a load has covered the whole model and used all it got."""
    own = set(model.state_dict())
    unfit = sorted(n for n in own & (set(report.missing) | set(report.left_out))
                   if not n.endswith(_UNIMPORTANT))
    if unfit or report.unexpected:
        details = [f'{_some(names)} {what}' for names, what in (
            (unfit, 'of the model not in the file, or of another shape'),
            (report.unexpected, 'of the file not in the model')) if names]
        raise CheckpointError(
            f'{source} does not cover the whole model: {"; ".join(details)}. Weights of a backbone '
            f'alone are for tools/train.py --pretrained.\n{report}')


def _load_by_name(model: nn.Module, contents: Mapping[str, Any], source: str | Path) -> None:
    state_dict = find_state_dict(contents)
    state_dict = {name.removeprefix('module.'): tensor for name, tensor in state_dict.items()}
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(f'{source} does not fit this model: {error}') from error
    print_log(f'{type(model).__name__}: {len(state_dict)} of {len(state_dict)} tensors loaded',
              logger='current')


def _some(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more}'
