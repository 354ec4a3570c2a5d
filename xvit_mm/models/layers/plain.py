"""Whether a layer may be computed by its formula instead of being called."""
from torch import nn


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is just a `kind` with weights of its own.

    Not so are layers that were quantised, wrapped in an adapter such as LoRA, parametrised or
    pruned: what they compute does not follow from an attribute `weight`.
    """
    return type(layer) is kind and 'weight' in layer._parameters
