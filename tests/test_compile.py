"""torch.compile: few graphs for many sizes, the same results, and checkpoints as without it."""
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from small_models import TINY
from torch import nn

from xvit_mm.engine import Runner
from xvit_mm.engine.frozen import compile_frozen
from xvit_mm.engine.hooks.compile import CompileHook
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.config_options import use_compile

eval_frame = pytest.importorskip('torch._dynamo.eval_frame')
compiler_cache = getattr(eval_frame, '_debug_get_cache_entry_list', None)
pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='torch 2.7 or newer'),
]


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type=f'xvit_mm.{name}', **TINY[name]))


def sizes(number: int) -> list[tuple[int, int]]:
    """Odd and even ones, as images have that are scaled for a detector."""
    generator = random.Random(0)
    return [(generator.randrange(100, 180), generator.randrange(100, 180)) for _ in range(number)]


def compile_anew(model: nn.Module, backend: str) -> None:
    torch._dynamo.reset()
    model.compile(dynamic=True, fullgraph=True, backend=backend)


def number_of_graphs(model: nn.Module) -> int:
    # Not what a counting backend sees: torch begins a graph twice if it has to fix a setting.
    return len(compiler_cache(type(model).forward.__code__))


def assert_same_maps(model: nn.Module, plain: nn.Module, *, count: int, batch: int) -> None:
    """Of a compiled model and one that is not, at some sizes, with at most two graphs."""
    for height, width in sizes(count):
        images = torch.randn(batch, 3, height, width)
        for found, expected in zip(model(images), plain(images)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert 1 <= number_of_graphs(model) <= 2


@torch.no_grad()
@pytest.mark.parametrize(
    'backend', ['eager', pytest.param('inductor', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', sorted(TINY))
def test_twenty_sizes_take_at_most_two_graphs(name, backend):
    model, plain = backbone(name).eval(), backbone(name).eval()
    compile_anew(model, backend)
    assert list(model.state_dict()) == list(plain.state_dict())
    # With a batch of one, kernels for tiny maps differ from others.
    assert_same_maps(model, plain, count=20, batch=2)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(TINY))
def test_frozen_weights_give_the_same_maps_of_a_single_image(name):
    model, plain = backbone(name).eval(), backbone(name).eval()
    compile_frozen(model, dynamic=True, fullgraph=True)
    assert_same_maps(model, plain, count=3, batch=1)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(TINY))
def test_autocast_takes_at_most_two_graphs(name):
    model, plain = backbone(name).eval(), backbone(name).eval()
    compile_anew(model, 'aot_eager')
    for height, width in sizes(4):
        images = torch.randn(2, 3, height, width)
        with torch.autocast('cpu', torch.bfloat16):
            pairs = list(zip(model(images), plain(images)))
        for found, expected in pairs:
            assert found.dtype == expected.dtype
            found, expected = found.float(), expected.float()
            assert (found - expected).norm() < 1e-2 * expected.norm()
    assert 1 <= number_of_graphs(model) <= 2


def test_frozen_weights_are_constants_and_may_not_change():
    seen = []

    def backend(graph, inputs, **_):
        seen.append((torch._inductor.config.freezing, len(inputs)))
        return graph.forward

    class Layer(nn.Linear):

        def forward(self, x):
            return super().forward(x)

    model, x = Layer(3, 2).eval(), torch.randn(4, 3)
    compile_frozen(model, backend=backend)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(x), x @ model.weight.T + model.bias)
        assert seen == [(True, 1)] and not torch._inductor.config.freezing
        model.weight += 1
        with pytest.raises(RuntimeError, match='weights have changed'):
            model(x)
        compile_frozen(model, backend=backend)
        torch.testing.assert_close(model(x), x @ model.weight.T + model.bias)
    assert seen == [(True, 1)] * 2
    model(x).sum().backward()
    torch.testing.assert_close(model.weight.grad, x.sum(0).expand(2, -1))
    assert seen[2:] == [(False, 3)]


@pytest.mark.parametrize('name, sizes', [
    ('padded_tables', (13, 9, 3, 3, 2)), ('padded_tables', (4, 3, 4, 3, 1)),
    ('exact_tables', (13, 9, 3, 2)), ('exact_tables', (4, 3, 4, 2)),
    ('padded_order', (7, 10)), ('padded_order', (1, 1)), ('padded_places', (7, 10)),
])
def test_tables_have_the_shapes_that_graphs_reckon_with(name, sizes):
    operation = getattr(torch.ops.xvit_mm, name).default
    torch.library.opcheck(operation, (*sizes, torch.device('cpu')))


@torch.no_grad()
@pytest.mark.parametrize('size', [(13, 9), (6, 6), (4, 3)], ids=str)
def test_attention_in_groups_has_the_shape_that_graphs_reckon_with(size):
    qkv, bias = torch.randn(2, size[0] * size[1], 48), torch.randn(2, 25)
    if min(size) <= 3:
        bias = torch.randn(2, (2 * size[0] - 1) * (2 * size[1] - 1))
    operation = torch.ops.xvit_mm.attend_in_groups.default
    torch.library.opcheck(operation, (qkv, bias, *size, 3, 2, 2))


@pytest.mark.parametrize('mode', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [(4, 5), (7, 3)], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_interpolated_maps_have_the_layout_that_graphs_reckon_with(mode, size, layout):
    x = torch.randn(2, 3, 4, 5).to(memory_format=layout)
    torch.library.opcheck(torch.ops.xvit_mm.interpolated.default, (x, *size, mode))


@pytest.mark.parametrize('training', [False, True])
def test_compiled_inference_on_a_cpu_attends_to_groups_without_padding(training):
    targets = set()

    def backend(graph, inputs):
        targets.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model = backbone('CrossFormer').train(training)
    compile_anew(model, backend)
    with torch.set_grad_enabled(training):
        model(torch.randn(2, 3, 130, 150))
    names = {name for name in ('attend_in_groups', 'padded_tables')
             if any(name in target for target in targets)}
    assert names == ({'padded_tables'} if training else {'attend_in_groups'})


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['aot_eager', 'inductor'])
@pytest.mark.parametrize('name', sorted(TINY))
def test_training_takes_at_most_two_graphs_and_gives_the_same_gradients(name, backend):
    if backend == 'inductor' and name != 'CrossViT':
        pytest.skip('not done after 9 minutes of a busy CPU')
    model, plain = (backbone(name).train() for _ in range(2))
    for part in (*model.modules(), *plain.modules()):
        if hasattr(part, 'drop_prob'):
            part.drop_prob = 0.
    compile_anew(model, backend)
    for height, width in sizes(4):
        images = torch.randn(2, 3, height, width)
        for net in (model, plain):
            net.zero_grad()
            sum((m**2).mean() for m in net(images)).backward()
        largest = max(p.grad.abs().max().item() for p in plain.parameters() if p.grad is not None)
        for found, expected in zip(model.parameters(), plain.parameters()):
            if expected.grad is not None:
                # Some gradients are zero but for rounding.
                torch.testing.assert_close(
                    found.grad, expected.grad, rtol=1e-3, atol=1e-5 * largest)
    assert 1 <= number_of_graphs(model) <= 2


class Images(torch.utils.data.Dataset):

    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 70, 90, generator=generator))


class Model(BaseModel):

    def __init__(self) -> None:
        super().__init__()
        settings = {**TINY['XFormer'], 'out_indices': (1,)}
        self.backbone = MODELS.build(dict(type='xvit_mm.XFormer', **settings))

    def forward(self, inputs, mode='tensor'):
        maps = self.backbone(inputs)
        return dict(loss=maps[-1].square().mean()) if mode == 'loss' else list(maps)


def train(folder: Path, *, epochs: int, resume: bool = False, **settings) -> Runner:
    torch._dynamo.reset()
    torch.manual_seed(0)
    runner = Runner(
        Model(), work_dir=str(folder), experiment_name=f'compile_{os.urandom(4).hex()}',
        train_dataloader=dict(
            dataset=Images(), batch_size=2, collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), resume=resume,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        visualizer=dict(type='Visualizer'), log_level='WARNING', cfg=Config(settings))
    runner.train()
    return runner


@pytest.mark.parametrize('first, then', [(True, False), (False, True)], ids=['off', 'on'])
def test_a_compiled_training_goes_on_uncompiled_and_the_reverse(first, then, tmp_path):
    """Both halves give the weights of a training without compilation."""
    options = dict(backend='eager')
    for compiled, epochs in ((first, 1), (then, 2)):
        runner = train(tmp_path / 'mixed', epochs=epochs, resume=epochs == 2,
                       compile=options if compiled else False)
        assert (runner.model.backbone._compiled_call_impl is not None) == compiled
    expected = train(tmp_path / 'plain', epochs=2).model.state_dict()
    found = runner.model.state_dict()
    assert list(found) == list(expected)
    saved = torch.load(tmp_path / 'mixed' / 'epoch_1.pth', weights_only=False)['state_dict']
    assert list(saved) == list(expected)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)


class Kept(BaseMetric):
    """Keeps the predicted maps."""

    def process(self, data_batch, data_samples):
        self.results += [x.clone() for x in data_samples]

    def compute_metrics(self, results):
        self.kept = results
        return {}


def runner_that_tests(folder: Path, model: BaseModel, metric: BaseMetric, **settings) -> Runner:
    cfg = Config(settings)
    use_compile(cfg, testing=True)
    torch._dynamo.reset()
    return Runner(
        model, work_dir=str(folder), experiment_name=f'compile_{os.urandom(4).hex()}',
        test_dataloader=dict(
            dataset=Images(), batch_size=2, collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        test_cfg=dict(), test_evaluator=[metric], visualizer=dict(type='Visualizer'),
        custom_hooks=[cfg.default_hooks.compile, dict(type='xvit_mm.FastInferenceHook')],
        log_level='WARNING', cfg=cfg)


@pytest.mark.parametrize('options', [
    dict(backend='eager'), pytest.param(True, marks=pytest.mark.slow)], ids=str)
def test_a_test_is_compiled_with_what_was_folded(options, tmp_path):
    torch.manual_seed(0)
    model, kept = Model().eval(), Kept()
    images = torch.stack([Images()[i]['inputs'] for i in range(len(Images()))])
    with torch.no_grad():
        plain = model.backbone(images)[-1]
    runner = runner_that_tests(tmp_path, model, kept, compile=options)
    assert runner.cfg.compile == options
    torch._dynamo.utils.counters.clear()
    runner.test()
    assert torch._dynamo.utils.counters['stats']['unique_graphs']
    assert model.backbone._compiled_call_impl is None
    torch.testing.assert_close(torch.cat(kept.kept), plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('options, testing, frozen', [
    (True, True, True), (dict(frozen=False), True, False), (dict(backend='eager'), True, False),
    (True, False, False)])
def test_weights_are_frozen_in_tests_alone(options, testing, frozen, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr('xvit_mm.engine.runner.compile_frozen',
                        lambda model, **options: compiled.append((model, options)))
    runner = runner_that_tests(tmp_path, Model(), Kept(), compile=options)
    backbone = runner.compile_backbone(testing=testing)
    assert compiled == ([(backbone, dict(dynamic=True))] if frozen else [])


def test_a_runner_that_cannot_compile_while_testing_is_named():
    with pytest.raises(ConfigError, match="SimpleNamespace compiles nothing .*'xvit_mm.Runner'"):
        CompileHook().before_test(SimpleNamespace())


def test_compile_on_the_command_line_keeps_the_settings_of_a_config():
    cfg = Config({})
    use_compile(cfg)
    assert cfg.compile is True and 'default_hooks' not in cfg
