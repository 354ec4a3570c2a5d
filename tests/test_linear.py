"""Linear layers that are computed as convolutions, and GELU that is computed twice."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xvit_mm.models.layers import MLP, apply_linear, linear

MANY = linear.MANY_TOKENS


def oracle(mlp: MLP, x: torch.Tensor) -> torch.Tensor:
    hidden = F.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias)
    return hidden @ mlp.fc2.weight.T + mlp.fc2.bias


@pytest.mark.parametrize('shape', [(1, MANY), (3, 2, MANY // 4), (2, 5), (0, 7), (5,)], ids=str)
@pytest.mark.parametrize('channels', [32, 33])
def test_results_and_gradients_are_those_of_the_formula(shape, channels):
    torch.manual_seed(0)
    mlp = MLP(channels, 2 * channels)
    exact = MLP(channels, 2 * channels).double()
    exact.load_state_dict(mlp.state_dict())
    x = torch.randn(*shape, channels, requires_grad=True)
    precise = x.detach().double().requires_grad_()
    found, expected = mlp(x), oracle(exact, precise)
    assert found.shape == expected.shape and found.is_contiguous()
    grad = torch.randn(expected.shape)
    found.backward(grad)
    expected.backward(grad.double())
    for ours, theirs in [(found, expected), (x.grad, precise.grad), *(
            (a.grad, b.grad) for a, b in zip(mlp.parameters(), exact.parameters()))]:
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * MANY**0.5)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), found, rtol=1e-5, atol=1e-6)


def test_many_tokens_take_the_convolution_and_keep_their_layout():
    layer, x = nn.Linear(64, 48), torch.randn(2, MANY // 2, 64)
    with torch.no_grad(), torch.profiler.profile() as profile:
        out = apply_linear(layer, x)
    assert out.is_contiguous()
    assert {'aten::mkldnn_convolution'} <= {event.name for event in profile.events()}
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)


def test_the_output_of_gelu_is_not_kept():
    mlp, x = MLP(16, 64), torch.randn(2, 10, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mlp(x)
    assert [tuple(t.shape) for t in kept].count((2, 10, 64)) == 1


def test_second_derivatives_are_right():
    mlp = MLP(2, 3).double()
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, x)
    assert torch.autograd.gradgradcheck(mlp, x)


def test_gradients_of_single_samples():
    mlp, x = MLP(4, 8), torch.randn(3, 5, 4)

    def loss(parameters, sample):
        return torch.func.functional_call(mlp, parameters, (sample,)).square().sum()

    parameters = dict(mlp.named_parameters())
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        expected = torch.autograd.grad(loss(parameters, sample), parameters.values())
        for name, grad in zip(parameters, expected):
            torch.testing.assert_close(found[name][i], grad)


@pytest.mark.parametrize('frozen', ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'])
def test_what_needs_no_gradient_gets_none(frozen):
    mlp = MLP(4, 8)
    mlp.get_parameter(frozen).requires_grad_(False)
    mlp(torch.randn(3, 4)).sum().backward()
    assert [name for name, p in mlp.named_parameters() if p.grad is None] == [frozen]


def test_a_frozen_mlp_passes_the_gradient_on_and_changes_no_input():
    mlp, x = MLP(4, 8).requires_grad_(False), torch.randn(3, 4)
    before = x.clone()
    mlp(x)
    assert torch.equal(x, before)
    mlp(x.requires_grad_()).sum().backward()
    assert x.grad.any()


def test_autocast_computes_in_its_own_type():
    mlp, x = MLP(8, 16), torch.randn(2, MANY, 8)
    plain = nn.Sequential(mlp.fc1, nn.GELU(), mlp.fc2)
    results = []
    for model in (mlp, plain):
        mlp.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            out = model(x)
        out.float().square().sum().backward()
        results.append([out, *(p.grad.clone() for p in mlp.parameters())])
        assert out.dtype == torch.bfloat16
    for found, expected in zip(*results):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


class Doubled(nn.Module):
    """Stands for an adapter around a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', ['fc1', 'act', 'fc2'])
def test_replaced_layers_are_called(name, training):
    mlp, x = MLP(4, 8), torch.randn(3, 4)
    expected = nn.Sequential(*(
        Doubled(layer) if part == name else layer for part, layer in mlp.named_children()))(x)
    setattr(mlp, name, Doubled(getattr(mlp, name)))
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', ['fc1', 'act', 'fc2'])
def test_hooks_see_the_maps_of_their_layer(name, training):
    mlp, x = MLP(4, 8), torch.randn(3, 4)
    seen = []
    getattr(mlp, name).register_forward_hook(lambda layer, inputs, out: seen.append((*inputs, out)))
    with torch.set_grad_enabled(training):
        mlp(x)
    maps = [x, mlp.fc1(x), F.gelu(mlp.fc1(x)), mlp.fc2(F.gelu(mlp.fc1(x)))]
    first = ['fc1', 'act', 'fc2'].index(name)
    assert len(seen) > 0
    torch.testing.assert_close(seen[0], tuple(maps[first:first + 2]))


def test_another_gelu_stays_what_it_is():
    mlp, x = MLP(4, 8), torch.randn(3, 4)
    mlp.act = nn.GELU(approximate='tanh')
    expected = mlp.fc2(F.gelu(mlp.fc1(x), approximate='tanh'))
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize('amp', [True, False])
def test_layers_without_bias_are_called(amp):
    mlp, x = MLP(4, 8), torch.randn(2, MANY, 4)
    mlp.fc1, mlp.fc2 = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))


def test_quantized_layers_are_called():
    mlp, x = MLP(16, 32).eval(), torch.randn(3, 16)
    quantized = torch.ao.quantization.quantize_dynamic(mlp, {nn.Linear}, torch.qint8)
    assert type(quantized.fc1) is not nn.Linear
    with torch.no_grad():
        deviation = quantized(x) - mlp(x)
    assert 0 < deviation.abs().max() < 0.1
