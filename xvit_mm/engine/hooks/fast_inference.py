"""Convolutional backbones in the form that a CPU computes fastest, while testing."""
import copy

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xvit_mm.registry import HOOKS
from xvit_mm.utils.images import image_channels

TOLERANCE = 1e-3
TRIAL_SIZE = 64, 96


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """The model with its backbone's BatchNorm folded into the convolutions, channels last.

    For a CPU, where it pays: backbones with BatchNorm, such as XFormer, VT-ResNet or ResNet. Others
    are returned as they are. The model itself is not changed: it shares everything but its backbone
    with the one returned, which is for inference only, in eval mode.

    The backbone is run once before and after, on noise. One whose maps change by more than 0.1 %,
    because its order of layers is not that of its forward pass, is left as it is with a warning, and
    so is one that does not run on it.

    Args:
        model: a detector, segmentor or classifier with a `backbone`, or a backbone itself.
    """
    backbone = getattr(model, 'backbone', model)
    if not any(isinstance(module, _BatchNorm) for module in backbone.modules()):
        return model
    # Some modules of mmpretrain do not return themselves from eval().
    folded = copy.deepcopy(backbone)
    folded.eval()
    folded = fuse_conv_bn(folded).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(backbone)
    plain.eval()
    try:
        deviation = _deviation(plain, folded)
    except RuntimeError as error:  # it takes other images, for example with 4 channels
        print_log(f'{type(backbone).__name__}: it cannot be tried on noise, so its BatchNorm is not '
                  f'folded ({error})', 'current', level=30)
        return model
    if not deviation <= TOLERANCE:
        print_log(f'{type(backbone).__name__}: its maps deviate by {deviation:.1e} with BatchNorm '
                  'folded into the convolutions, so it stays as it is', 'current', level=30)
        return model
    if backbone is model:
        return folded
    prepared = copy.copy(model)
    prepared._modules = dict(model._modules, backbone=folded)
    prepared.eval()
    return prepared


def _deviation(plain: nn.Module, folded: nn.Module) -> float:
    """The largest relative deviation of a map; NaN if any of them is."""
    weight = next(plain.parameters())
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(1, image_channels(plain), *TRIAL_SIZE, generator=noise).to(weight)
    with torch.no_grad():
        pairs = zip(_maps(plain(image)), _maps(folded(image)))
        # Not by Python's max, which passes over a NaN.
        return float(torch.stack(
            [(a - b).norm() / a.norm().clamp_min(1e-12) for a, b in pairs]).max())


def _maps(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@HOOKS.register_module()
class FastInferenceHook(Hook):
    """Tests with `prepare_for_inference` on a CPU, and gives the model back as it was.

    It leaves the model alone where an `EMAHook` swaps other weights in for the test.

    Args:
        enabled: False does nothing.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._backbone: nn.Module | None = None

    def before_test(self, runner: Runner) -> None:
        model = runner.model
        if not self.enabled or not hasattr(model, 'backbone'):
            return
        if next(model.parameters()).device.type != 'cpu':
            return
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            runner.logger.info('BatchNorm is not folded, as EMAHook swaps in averaged weights')
            return
        prepared = prepare_for_inference(model)
        if prepared is not model:
            self._backbone, model.backbone = model.backbone, prepared.backbone
            runner.logger.info(
                f'{type(self._backbone).__name__}: BatchNorm folded, channels last for this test')

    def after_test(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self._backbone is not None:
            runner.model.backbone, self._backbone = self._backbone, None
