"""Loading the weights of a whole detector, segmentor or classifier: all of them, or an error."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import nn

from .checks import check_kinds, check_values
from .errors import CheckpointError
from .loading import NoBackbone, load_tensors
from .reading import find_state_dict


def load_whole_model(model: nn.Module, contents: Mapping[str, Any], source: str | Path) -> None:
    """Load a checkpoint, official or your own, into a model: heads and necks too.

    Args:
        model: of mmdet, mmseg or mmpretrain, with any backbone.
        contents: of the checkpoint, as `read_checkpoint` gives them.
        source: where they are from, for messages.

    Raises:
        CheckpointError: a tensor of the model is not in the checkpoint or has another shape, or the
            checkpoint has tensors that do not belong to the model. Nothing has been loaded then.
    """
    state_dict = find_state_dict(contents)
    try:
        report = str(load_tensors(model, state_dict, strict=True))
    except NoBackbone:
        state_dict = {name.removeprefix('module.'): t for name, t in state_dict.items()}
        own = model.state_dict()
        try:
            check_kinds(state_dict, own)
            check_values(state_dict, own)
            model.load_state_dict(state_dict)
        except CheckpointError as error:
            raise CheckpointError(f'{source}: {error}') from None
        except RuntimeError as error:
            raise CheckpointError(f'{source} does not fit this model: {error}') from error
        report = f'{type(model).__name__}: {len(state_dict)} of {len(state_dict)} tensors loaded'
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None
    print_log(report, logger='current')
