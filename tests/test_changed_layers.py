"""Layers that users prune, parametrise, quantise or wrap compute what they are then."""
import copy

import pytest
import torch
from small_models import SMALL
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from xvit_mm.registry import MODELS

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
IMAGES = torch.randn(2, 3, 48, 67, generator=torch.Generator().manual_seed(0))


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapter(nn.Module):
    """A layer and what is added to it, as in LoRA; like those of peft it has a `weight`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.added = layer, copy.deepcopy(layer)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.added(x)


class Quantised(nn.Module):
    """A layer whose `weight` is a function, as in `torch.ao.nn.quantized`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.fixture(params=[*sorted(SMALL), 'XFormer map'])
def model(request) -> nn.Module:
    name, *mode = request.param.split()
    torch.manual_seed(0)
    settings = SMALL[name] | (dict(attn_mode=mode[0]) if mode else {})
    model = MODELS.build(dict(type=f'xvit_mm.{name}', **settings)).eval()
    for module in model.modules():
        if isinstance(module, LAYERS):
            # So large that a wrong one is noticed.
            nn.init.normal_(module.weight, std=module.weight[0].numel()**-0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 1e-5
    return model


def layers_of(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, layer) for parent in model.modules()
            for name, layer in parent.named_children() if isinstance(layer, LAYERS)]


@torch.no_grad()
def maps_of(model: nn.Module) -> list[Tensor]:
    return list(model(IMAGES))


def assert_same_maps(model: nn.Module, expected: nn.Module) -> None:
    for found, wanted in zip(maps_of(model), maps_of(expected)):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * scale)


def test_pruned_layers_follow_their_weights(model):
    expected = copy.deepcopy(model)
    for _, _, layer in layers_of(model):
        prune.identity(layer, 'weight')
    # As loading does, which leaves alone what pruning made of the weights before.
    for (_, _, layer), (_, _, other) in zip(layers_of(model), layers_of(expected)):
        with torch.no_grad():
            other.weight.mul_(2)
            layer.weight_orig.mul_(2)
    assert_same_maps(model, expected)


def with_doubled(model, *names):
    """A copy of a model with these parameters of its layers doubled."""
    copied = copy.deepcopy(model)
    for _, _, layer in layers_of(copied):
        for parameter in (getattr(layer, name) for name in names):
            if parameter is not None:
                parameter.data.mul_(2)
    return copied


def test_parametrised_layers_have_the_weights_of_their_parametrisation(model):
    expected = with_doubled(model, 'weight')
    for _, _, layer in layers_of(model):
        parametrize.register_parametrization(layer, 'weight', Doubled())
    assert_same_maps(model, expected)


def test_adapters_are_called(model):
    expected = with_doubled(model, 'weight', 'bias')
    for parent, name, layer in layers_of(model):
        setattr(parent, name, Adapter(layer))
    assert_same_maps(model, expected)


def test_layers_of_another_class_are_called(model):
    expected = copy.deepcopy(model)
    for parent, name, layer in layers_of(model):
        setattr(parent, name, Quantised(layer))
    assert_same_maps(model, expected)


def test_replicas_of_data_parallel_compute_the_same(model):
    # As `torch.nn.parallel.replicate`, whose replicas have tensors for parameters.
    modules = list(model.modules())
    replicas = {module: module._replicate_for_data_parallel() for module in modules}
    for module, replica in replicas.items():
        for name, child in module.named_children():
            replica._modules[name] = replicas[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.detach().clone())
    assert_same_maps(replicas[model], model)
