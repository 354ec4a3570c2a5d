"""Images that a model takes."""
from torch import nn


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its first convolution, or 3."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convolutions), 3)
