"""mmengine's runner, with checkpoints that are understood and accounted for."""
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import load_state_dict
from torch import Tensor, nn

from xvit_mm.checkpoints import (CheckpointError, find_backbone, find_state_dict, load_official,
                                 read_checkpoint, restores_objects)
from xvit_mm.registry import RUNNERS

ReviseKeys = Sequence[tuple[str, str]]


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """`mmengine.runner.Runner` whose `load_from`, `resume` and test checkpoints may be official.

    - Files are read with `weights_only=True`: code in them is never run, whatever the model. Before
      torch 2.6, which cannot leave out the objects in a training checkpoint, they are read as
      mmengine does, which trusts them.
    - For a model with one of our backbones official names are translated, and the backbone must be
      covered completely. Other models are loaded by name, as mmengine does.
    """

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: ReviseKeys = ((r'^module\.', ''),),
    ) -> dict[str, Any]:
        """Load a checkpoint into the model and return it.

        Args:
            filename: a path, an address or a name in a model zoo.
            map_location: as in `torch.load`.
            strict: refuse a checkpoint that lacks a tensor of the model, or has others.
            revise_keys: pairs of a pattern and its replacement, for the names in the checkpoint.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: unreadable, or the backbone of the model is not covered.
            RuntimeError: `strict`, and the checkpoint does not fit.
        """
        if not restores_objects():
            return super().load_checkpoint(filename, map_location, strict, revise_keys)
        checkpoint = read_checkpoint(filename, map_location)
        checkpoint['state_dict'] = find_state_dict(checkpoint)
        # Some hooks change the weights here, as EMAHook does when it swaps in the averaged ones.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = _unwrapped(self.model)
        state_dict = _revised(checkpoint['state_dict'], revise_keys)
        if _has_backbone(model):
            report = load_official(model, state_dict)
            if strict and (report.missing or report.unexpected):
                raise CheckpointError(f'{filename} does not fit strictly.\n{report}')
        else:
            report = ''
            load_state_dict(model, state_dict, strict, self.logger)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}\n{report}'.rstrip())
        return checkpoint


def _revised(state_dict: dict[str, Tensor], revise_keys: ReviseKeys) -> OrderedDict[str, Tensor]:
    """The tensors under revised names, with the versions of the modules that saved them."""
    revised = OrderedDict(state_dict)
    for pattern, replacement in revise_keys:
        revised = OrderedDict((re.sub(pattern, replacement, n), t) for n, t in revised.items())
    revised._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return revised


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _has_backbone(model: nn.Module) -> bool:
    try:
        find_backbone(model)
    except (TypeError, ValueError):
        return False
    return True
