"""mmengine's runner, with checkpoints that are understood and accounted for."""
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from xvit_mm.checkpoints import (CheckpointError, find_backbone, find_state_dict, load_official,
                                 read_checkpoint)
from xvit_mm.registry import RUNNERS


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """`mmengine.runner.Runner` whose `load_from`, `resume` and test checkpoints may be official.

    - Files are read with `weights_only=True`, on every torch; objects in them are never run.
    - Official names are translated, and the backbone of the model must be covered completely.
    """

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: list[tuple[str, str]] = [(r'^module.', '')],  # noqa: B006, as in mmengine
    ) -> dict[str, Any]:
        """Load a checkpoint into the model and return it.

        Raises:
            CheckpointError: unreadable, or the backbone of the model is not covered.
        """
        ours = _has_backbone(_unwrapped(self.model)) and '://' not in str(filename)
        if not ours or not _reads_history_safely():
            return super().load_checkpoint(filename, map_location, strict, revise_keys)
        checkpoint = read_checkpoint(filename, map_location)
        checkpoint['state_dict'] = find_state_dict(checkpoint)
        # Some hooks change the weights here, as EMAHook does when it swaps in the averaged ones.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        report = load_official(_unwrapped(self.model), checkpoint['state_dict'])
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}\n{report}')
        if strict and (report.missing or report.unexpected):
            raise CheckpointError(f'{filename} does not fit strictly.\n{report}')
        return checkpoint


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


def _reads_history_safely() -> bool:
    # Before, torch could not be told which classes of a training checkpoint are harmless.
    return hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint')
