"""What every backbone promises: sizes, modes, freezing, memory, precision, configs."""
import copy
import inspect

import pytest
import torch
from small_models import SMALL
from versions import HALF

import xvit_mm
from xvit_mm.models.backbones import Backbone
from xvit_mm.registry import MODELS

SIZES = [(1, 1), (2, 3), (31, 33), (64, 96), (97, 50), (5, 200), (128, 128)]
pytestmark = pytest.mark.parametrize('name', SMALL)


def build(name: str, **overrides) -> Backbone:
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **overrides))
    backbone.init_weights()
    return backbone


def images(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def ceil_div(size: int, stride: int) -> int:
    return -(-size // stride)


def same(first, second, **tolerance) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_small_models_cover_every_backbone(name):
    exported = {n for n, cls in vars(xvit_mm.models.backbones).items()
                if isinstance(cls, type) and issubclass(cls, Backbone) and cls is not Backbone}
    assert exported == set(SMALL)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_maps_have_the_announced_channels_and_ceil_sizes(name, size, training):
    backbone = build(name).train(training)
    maps = backbone(images(*size))
    assert isinstance(maps, tuple) and len(maps) == 4
    for x, channels, stride in zip(maps, backbone.out_channels, backbone.out_strides, strict=True):
        assert x.shape == (2, channels, *(ceil_div(s, stride) for s in size))
        assert x.is_contiguous() and x.isfinite().all()


def test_results_do_not_depend_on_earlier_sizes_or_modes(name):
    backbone = build(name).eval()
    fresh = copy.deepcopy(backbone)
    with torch.no_grad():
        for size in SIZES * 2:
            backbone(images(*size))
        backbone.train()(images(40, 40))
        backbone.load_state_dict(fresh.state_dict())
        backbone.eval()
        for size in SIZES:
            same(backbone(images(*size)), fresh(images(*size)))


@pytest.mark.parametrize('with_cp', [False, True])
def test_forward_hooks_fire_on_every_stage(name, with_cp):
    backbone = build(name, with_cp=with_cp).train()
    stages = {'CrossFormer': ['stages.0', 'stages.1', 'stages.2', 'stages.3'],
              'CrossViT': ['encoders.0', 'encoders.1', 'encoders.2', 'pyramid'],
              'VTResNet': ['resnet.layer1', 'resnet.layer2', 'resnet.layer3', 'vt'],
              'XFormer': ['stem', 'stages.0', 'stages.1', 'stages.2', 'stages.3']}[name]
    fired = []
    for stage in stages:
        backbone.get_submodule(stage).register_forward_hook(
            lambda module, inputs, output, stage=stage: fired.append(stage))
    backbone(images())
    assert fired == stages


def test_images_of_a_batch_do_not_influence_each_other(name):
    backbone = build(name).eval()
    batch = images(50, 70, batch=3)
    with torch.no_grad():
        together = backbone(batch)
        flipped = backbone(batch.flip(0))
        alone = backbone(batch[1:2])
    same(together, [x.flip(0) for x in flipped], rtol=1e-4, atol=1e-5)
    same([x[1:2] for x in together], alone, rtol=1e-4, atol=1e-5)


def test_eval_follows_weights_that_change_in_place(name):
    backbone = build(name).eval()
    with torch.no_grad():
        before = backbone(images())
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        after = backbone(images())
        fresh = build(name).eval()
        fresh.load_state_dict(backbone.state_dict())
        same(after, fresh(images()))
    assert (before[-1] - after[-1]).abs().max() > 1e-3


def test_eval_with_gradients_gives_the_same_maps(name):
    backbone = build(name).eval()
    with torch.no_grad():
        cold, warm = backbone(images()), backbone(images())
    same(cold, warm)
    same(cold, backbone(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2), (3,), (0,)])
def test_every_parameter_gets_a_gradient(name, out_indices):
    backbone = build(name, out_indices=out_indices).train()
    maps = backbone(images())
    assert len(maps) == len(out_indices) == len(backbone.out_channels) == len(backbone.out_strides)
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    # A softmax is the same for a bias that all its logits share: its gradient is rounding, or zero.
    shared = '.position_bias.layers.9.bias'
    without = [name for name, parameter in backbone.named_parameters() if parameter.grad is None
               or not (parameter.grad.any() or name.endswith(shared))]
    assert not without
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_fewer_outputs_are_the_same_maps(name):
    full = build(name).eval()
    part = build(name, out_indices=(1, 2)).eval()
    part.load_state_dict(full.state_dict(), strict=False)
    with torch.no_grad():
        same(full(images())[1:3], part(images()))


@pytest.mark.parametrize('frozen_stages', [0, 1, 2, 4])
def test_frozen_stages_hold_from_construction_and_after_train(name, frozen_stages):
    backbone = build(name, frozen_stages=frozen_stages)
    frozen = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen
    assert backbone.train() is backbone
    assert frozen == {n for n, p in backbone.named_parameters() if not p.requires_grad}
    parts = backbone.frozen_parts(frozen_stages)
    assert all(not module.training for part in parts for module in part.modules())
    if frozen_stages < 4:
        sum(x.sum() for x in backbone(images())).backward()
        assert {n for n, p in backbone.named_parameters() if p.grad is None} == frozen
        assert frozen < {n for n, p in
                         build(name, frozen_stages=frozen_stages + 1).named_parameters()
                         if not p.requires_grad}


def test_nothing_is_frozen_by_default(name):
    assert all(p.requires_grad for p in build(name).parameters())


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval_keeps_the_statistics_of_every_batch_norm(name, norm_eval):
    backbone = build(name, norm_eval=norm_eval).train()
    before = {n: b.clone() for n, b in backbone.named_buffers() if 'running_' in n}
    # On maps and, in VT, on tokens; the vision transformers have none.
    assert bool(before) == (name in ('VTResNet', 'XFormer'))
    backbone(images())
    buffers = dict(backbone.named_buffers())
    kept = {n for n, value in before.items() if torch.equal(value, buffers[n])}
    assert kept == (set(before) if norm_eval else set())


def test_checkpointing_changes_neither_maps_nor_gradients(name):
    results = []
    for with_cp in (False, True):
        backbone = build(name, with_cp=with_cp).train()
        torch.manual_seed(2)
        maps = backbone(images())
        sum(x.square().mean() for x in maps).backward()
        results.append([*maps, *(p.grad for p in backbone.parameters())])
    same(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF])
def test_low_precision_is_finite_and_close(name, dtype):
    backbone = build(name).eval()
    with torch.no_grad():
        exact = backbone(images(97, 50))
    low = copy.deepcopy(backbone).to(dtype)
    maps = low(images(97, 50).to(dtype))
    sum(x.float().square().mean() for x in maps).backward()
    assert all(p.grad.isfinite().all() for p in low.parameters() if p.grad is not None)
    for a, b in zip(exact, maps):
        assert b.dtype == dtype and b.isfinite().all()
        assert (a - b).norm() <= 0.05 * a.norm()


def test_autocast_trains_without_nan(name):
    backbone = build(name).train()
    with torch.autocast('cpu', torch.bfloat16):
        maps = backbone(images(97, 50))
    sum(x.float().square().mean() for x in maps).backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_state_dict_survives_a_round_trip(name, tmp_path):
    backbone = build(name).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.1)  # `build` starts alike
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    other = build(name, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth')))
    same(backbone.state_dict().values(), other.state_dict().values(), rtol=0, atol=0)
    with torch.no_grad():
        same(backbone(images()), other.eval()(images()))


def test_layer_depth_grows_with_the_position_in_the_network(name):
    backbone = build(name)
    depths = [backbone.get_layer_depth(f'backbone.{n}', 'backbone.')
              for n, _ in backbone.named_parameters()]
    layers, totals = zip(*depths)
    assert len(set(totals)) == 1 and min(layers) == 0
    assert all(0 <= layer < totals[0] for layer in layers) and len(set(layers)) > 3
    assert backbone.get_layer_depth('head.fc.weight', 'backbone.') == (totals[0] - 1, totals[0])
    for frozen_stages in range(4):
        first = {id(p) for part in backbone.frozen_parts(frozen_stages) for p in part.parameters()}
        before, after = ([layer for p, layer in zip(backbone.parameters(), layers)
                          if (id(p) in first) == is_first] for is_first in (True, False))
        assert max(before) <= min(after)


def test_the_signature_has_the_common_arguments_with_their_defaults(name):
    parameters = inspect.signature(MODELS.get(f'xvit_mm.{name}')).parameters
    common = {key: parameters[key].default for key in (
        'in_channels', 'frozen_stages', 'norm_eval', 'with_cp', 'init_cfg')}
    assert common == dict(
        in_channels=3, frozen_stages=-1, norm_eval=False, with_cp=False, init_cfg=None)
    assert list(parameters)[:2] == ['arch', 'out_indices']
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())


def test_an_arch_dict_holds_what_differs_from_the_default(name):
    cls = MODELS.get(f'xvit_mm.{name}')
    default = cls.variants[cls.default_arch]
    with torch.device('meta'):
        expected = {key: x.shape for key, x in cls().state_dict().items() if 'extra' not in key}
        for arch in ({}, default, cls.default_arch):
            weights = cls(arch).state_dict()
            assert {key: x.shape for key, x in weights.items() if 'extra' not in key} == expected
    with pytest.raises(ValueError, match=r"unknown entries \['nonsense'\]; known are .*depths'"):
        cls(dict(nonsense=1))
    with pytest.raises(ValueError, match="no arch 'nonsense'; choose from '"):
        cls('nonsense')


def test_unknown_arguments_are_refused_with_a_hint(name):
    with pytest.raises(TypeError, match=r"'style'.*_delete_=True"):
        build(name, style='pytorch', num_stages=4)
    with pytest.raises(TypeError, match="Did you mean 'frozen_stages'"):
        build(name, frozen_stage=1)


@pytest.mark.parametrize('wrong, message', [
    (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\).*0 to 3'),
    (dict(out_indices=()), 'out_indices'),
    (dict(out_indices=(2, 1)), 'ascending'),
    (dict(frozen_stages=5), 'frozen_stages=5'),
])
def test_arguments_out_of_range_are_refused(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        build(name, **wrong)


@pytest.mark.parametrize('out_indices', [range(2), [0, 1], (0, 1)], ids=str)
def test_outputs_come_from_any_sequence_of_numbers(name, out_indices):
    assert build(name, out_indices=out_indices).out_indices == (0, 1)


@pytest.mark.training
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_a_traced_model_takes_any_batch_and_the_sizes_that_it_can(name):
    backbone = build(name).eval()
    # Groups of CrossFormer belong to one size.
    sizes = [(64, 64)] if name == 'CrossFormer' else [(64, 64), (48, 48), (50, 97)]
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            first = images(64, 64, batch=1).contiguous(memory_format=layout)
            traced = torch.jit.trace(backbone, first, check_trace=False)
            for size in sizes:
                batch = images(*size).contiguous(memory_format=layout)
                same(backbone(batch), traced(batch), rtol=1e-4, atol=1e-5)


def test_default_construction_names_a_published_variant(name):
    cls = getattr(xvit_mm.models.backbones, name)
    assert sum(p.numel() for p in cls().parameters()) > 1e6
