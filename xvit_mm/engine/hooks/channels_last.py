"""Convolutional models in the memory order that their kernels prefer."""
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from xvit_mm.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps the model's weights in channels-last order during a run.

    Convolutions then compute in that order, which gives the same results faster on a CPU, and with
    mixed precision on a GPU. Worth trying for models that are mostly convolutions.

    For one process: distributed training has laid out its gradients before this hook runs, and
    would copy each of them into another order.

    Args:
        enabled: False does nothing, so that a config may hold the hook for an option to switch on.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def before_run(self, runner: Runner) -> None:
        """Before training, validation or testing."""
        if self.enabled:
            runner.model.to(memory_format=torch.channels_last)
