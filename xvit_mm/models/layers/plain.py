"""Whether a layer may be computed by its formula instead of being called."""
from torch import Tensor, nn


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is just a `kind` with weights of its own.

    Not so are layers that were quantised, sharded, wrapped in an adapter such as LoRA, parametrised
    or pruned: what they compute does not follow from an attribute `weight`.
    """
    # Quantizers and shardings put a kind of tensor of their own in place of the weight.
    weight = layer._parameters.get('weight')
    return type(layer) is kind and type(weight) in (nn.Parameter, Tensor)


def has_hooks(layer: nn.Module) -> bool:
    """Whether something watches the calls of a layer."""
    return any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks,
                layer._backward_pre_hooks))
