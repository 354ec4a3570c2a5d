"""Images that a model takes."""
from torch import nn

from xvit_mm.models.backbones.base import Backbone


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: `in_channels` of a backbone of this package, or 3.

    Other backbones do not say: the attribute counts other channels there, and the first
    convolution may take pixels side by side as channels, as that of YOLOX does.
    """
    ours = (module for module in model.modules() if isinstance(module, Backbone))
    return next((backbone.in_channels for backbone in ours), 3)
