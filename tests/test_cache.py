"""Constants that are remembered in eval mode, and when they are forgotten."""
import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from versions import not_in_torch_2_1

from xvit_mm.models.layers import EvalCache
from xvit_mm.models.layers.cache import SizeCache, autocast_dtype, is_compiling


class Derived(EvalCache):
    """A constant that follows from a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.computed = 0

    def forward(self) -> Tensor:
        return self.cached('size', self._compute)

    def _compute(self) -> Tensor:
        self.computed += 1
        return self.layer(torch.full((1, 4), 1 / 3, dtype=self.layer.weight.dtype))


@torch.no_grad()
def without_gradients(module: Derived) -> Tensor:
    return module()


def test_what_is_known_is_not_computed_again():
    module = Derived().eval()
    assert without_gradients(module) is without_gradients(module) and module.computed == 1


@not_in_torch_2_1('autocast to float16 on a CPU')
def test_each_precision_of_autocast_has_its_own_constants():
    module = Derived().eval()
    dtypes = []
    for _ in range(2):
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast('cpu', dtype):
                dtypes.append(without_gradients(module).dtype)
        dtypes.append(without_gradients(module).dtype)
    assert dtypes == [torch.bfloat16, torch.float16, torch.float32] * 2
    assert module.computed == 3


@pytest.mark.parametrize('in_training_mode', [True, False])
def test_a_step_of_an_optimizer_that_raises_no_version_is_noticed(in_training_mode):
    module = Derived().eval()
    before = without_gradients(module).clone()
    # Without `train()`, which forgets as well.
    module.training = in_training_mode
    module()
    module.training = False
    version = module.layer.bias._version
    module.layer.bias.data.add_(1)
    assert module.layer.bias._version == version
    torch.testing.assert_close(without_gradients(module), before + 1)


@pytest.mark.parametrize('change', [
    lambda module: module.layer.bias.data.add_(1) is None or module.eval(),
    lambda module: nn.init.ones_(module.layer.bias),
    lambda module: module.double(),
    lambda module: module.load_state_dict(Derived().state_dict()),
    lambda module: module.layer.bias.data.add_(1),
    lambda module: module.layer.bias.data.copy_(torch.ones(4)),
    lambda module: setattr(module.layer.bias, 'data', torch.ones(4)),
    lambda module: setattr(module.layer, 'bias', nn.Parameter(torch.ones(4))),
], ids=['eval', 'write', 'dtype', 'load', 'write to data', 'swap of averaged weights', 'other data',
        'other parameter'])
def test_changes_are_noticed(change):
    # A copy, whose parameters have the versions of new ones.
    module = copy.deepcopy(Derived()).eval()
    without_gradients(module)
    change(module)
    # Also compares the data types.
    torch.testing.assert_close(without_gradients(module), module._compute(), rtol=0, atol=0)


def test_weights_that_are_passed_in_are_those_that_count():
    module = copy.deepcopy(Derived()).eval()
    without_gradients(module)
    for value in (1., 2.):
        with torch.no_grad():
            bias = torch.func.functional_call(module, {'layer.bias': torch.full((4,), value)}, ())
        expected = module.layer.weight.sum(1) / 3 + value
        torch.testing.assert_close(bias[0], expected)


def test_an_ensemble_by_vmap_has_the_constants_of_each_model():
    modules = [copy.deepcopy(Derived()).eval() for _ in range(2)]
    nn.init.ones_(modules[1].layer.bias)
    stacked = torch.func.stack_module_state(modules)
    call = torch.func.vmap(lambda *state: torch.func.functional_call(modules[0], state, ()))
    expected = torch.stack([module._compute() for module in modules])
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(call(*stacked), expected)
    torch.testing.assert_close(without_gradients(modules[0]), expected[0])


@pytest.mark.parametrize('duplicate', [
    copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=['copy', 'pickle'])
def test_nothing_is_copied_with_a_module(duplicate):
    module = Derived().eval()
    with torch.inference_mode():
        value = module()
    other = duplicate(module)
    assert other.computed == 1
    torch.testing.assert_close(without_gradients(other), value)
    assert other.computed == 2 and without_gradients(module) is value


def test_another_thread_may_drop_what_is_kept_at_any_step():
    module = Derived().eval()

    class Key:
        """Which is hashed at every step."""

        def __hash__(self) -> int:
            module.eval()
            return 0

    expected, key = module._compute(), Key()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(module.cached(key, module._compute), expected)


@pytest.mark.filterwarnings('error')  # the functions of torch before 2.4 warn in later ones
def test_what_autocast_computes_in_is_found_without_a_warning():
    assert autocast_dtype('cpu') is None
    with torch.autocast('cpu', torch.bfloat16):
        assert autocast_dtype('cpu') == torch.bfloat16


def test_modules_on_a_device_without_autocast_remember_too():
    module = Derived().eval().to('meta')
    module._compute = object
    assert without_gradients(module) is without_gradients(module)


class Table:
    """100 bytes."""

    nbytes = 100

    def __init__(self) -> None:
        self.tensor = torch.ones(2, requires_grad=False)


def test_values_by_size_are_bounded_by_their_bytes_and_the_oldest_go():
    cache: SizeCache[Table] = SizeCache(250)
    first = cache.get('a', Table)
    cache.get('b', Table)
    assert cache.get('a', Table) is first
    cache.get('c', Table)
    assert cache.nbytes == 200 and cache.get('a', Table) is first
    second = cache.get('b', Table)
    assert cache.get('b', Table) is second and cache.nbytes == 200


def test_a_value_larger_than_the_cache_is_the_only_one():
    cache: SizeCache[Table] = SizeCache(50)
    assert cache.get('a', Table) is cache.get('a', Table)
    cache.get('b', Table)
    assert cache.nbytes == 100


def test_values_made_in_inference_mode_serve_training():
    cache: SizeCache[Table] = SizeCache(250)
    with torch.inference_mode():
        table = cache.get('a', Table)
    weight = torch.ones(2, requires_grad=True)
    (weight * table.tensor).sum().backward()
    assert weight.grad.tolist() == [1, 1]


def test_fake_tensors_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode
    cache: SizeCache[Table] = SizeCache(250)
    with FakeTensorMode():
        cache.get('a', Table)
    assert cache.nbytes == 0
    real = cache.get('a', Table)
    with FakeTensorMode():
        assert cache.get('a', Table) is not real


def test_compilation_is_asked_of_old_and_new_torch(monkeypatch):
    assert not is_compiling()
    monkeypatch.setattr(torch._dynamo, 'is_compiling', lambda: True)
    if hasattr(torch.compiler, 'is_compiling'):  # since torch 2.3
        assert not is_compiling()
        monkeypatch.delattr(torch.compiler, 'is_compiling')
    assert is_compiling()
