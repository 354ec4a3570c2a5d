"""The optimizer's settings per parameter, against rules written out here."""
import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import MultiStepLR, build_optim_wrapper
from small_models import SMALL
from torch import nn

from versions import not_in_torch_2_1

from xvit_mm.engine import optimizers
from xvit_mm.engine.optimizers import fuse_on_cpu
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import ConfigError

LR, DECAY, RATE = 1e-2, 0.05, 0.75
BOTH = dict(layer_decay_rate=RATE, decay_weights_only=True)


@pytest.fixture(params=sorted(SMALL))
def name(request):
    return request.param


class Model(nn.Module):
    """What detectors, segmentors and classifiers have in common."""

    def __init__(self, name: str = 'XFormer', **settings) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name] | settings))
        self.neck = nn.Sequential(
            nn.Conv2d(self.backbone.out_channels[-1], 8, 1), nn.GroupNorm(2, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        return self.head(self.neck(maps[-1]).mean((2, 3))).sum() + sum(x.mean() for x in maps)


def model_of(name: str = 'XFormer', **settings) -> Model:
    torch.manual_seed(0)
    return Model(name, **settings)


def wrapper_of(model, paramwise_cfg, constructor='xvit_mm.OptimWrapperConstructor', **optimizer):
    return build_optim_wrapper(model, dict(
        constructor=constructor, paramwise_cfg=paramwise_cfg,
        optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY) | optimizer))


def settings_of(wrapper, model) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, which must occur once."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    pairs = [(names[p], (group['lr'], group['weight_decay']))
             for group in wrapper.optimizer.param_groups for p in group['params']]
    assert len(pairs) == len({name for name, _ in pairs})
    return dict(pairs)


def step(model, wrapper) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    wrapper.update_params(model(images))


def free_of_decay(name: str, parameter: nn.Parameter) -> bool:
    listed = ('cls_token', 'pos_embed', 'temperature')
    return parameter.ndim < 2 or name.endswith(listed)


def test_settings_of_each_parameter_are_those_of_the_rule(name):
    model = model_of(name)
    found = settings_of(wrapper_of(model, BOTH), model)
    expected = {}
    for key, parameter in model.named_parameters():
        exponent = 0
        if key.startswith('backbone.'):
            layer, layers = model.backbone.get_layer_depth(key, 'backbone.')
            exponent = layers - 1 - layer
        decay = 0. if free_of_decay(key, parameter) else DECAY
        expected[key] = (pytest.approx(LR * RATE**exponent, rel=1e-12), decay)
    assert found == expected
    assert {lr for key, (lr, _) in found.items() if not key.startswith('backbone.')} == {LR}
    assert min(lr for lr, _ in found.values()) < LR * RATE**3


@pytest.mark.parametrize('name, parameter, scale, decay', [
    ('CrossViT', 'backbone.embeds.0.cls_token', RATE**7, 0.),
    ('CrossViT', 'backbone.embeds.1.pos_embed', RATE**7, 0.),
    ('CrossViT', 'backbone.encoders.0.blocks.1.0.attn.qkv.weight', RATE**6, DECAY),
    ('CrossViT', 'backbone.encoders.2.blocks.1.1.attn.qkv.weight', RATE, DECAY),
    ('CrossFormer', 'backbone.stages.0.embed.projs.0.weight', RATE**10, DECAY),
    ('CrossFormer', 'backbone.stages.3.blocks.1.attn.position_bias.layers.0.weight', RATE, DECAY),
    ('CrossFormer', 'backbone.stages.3.blocks.1.attn.position_bias.layers.1.weight', RATE, 0.),
    ('XFormer', 'backbone.stages.3.1.blocks.0.attn.temperature', RATE, 0.),
    ('VTResNet', 'backbone.resnet.conv1.weight', RATE**9, DECAY),
    ('VTResNet', 'backbone.resnet.bn1.weight', RATE**9, 0.),
    ('VTResNet', 'neck.0.weight', 1., DECAY),
])
def test_settings_of_telling_parameters(name, parameter, scale, decay):
    model = model_of(name)
    lr, weight_decay = settings_of(wrapper_of(model, BOTH), model)[parameter]
    assert (lr, weight_decay) == (pytest.approx(LR * scale, rel=1e-12), decay)


def test_every_trained_parameter_is_there_and_groups_are_few(name):
    model = model_of(name, frozen_stages=1)
    wrapper = wrapper_of(model, BOTH)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(settings_of(wrapper, model)) == trained != set(dict(model.named_parameters()))
    layers = model.backbone.get_layer_depth('', 'backbone.')[1]
    assert len(wrapper.optimizer.param_groups) <= 2 * layers
    assert len(wrapper_of(model, dict(decay_weights_only=True)).optimizer.param_groups) == 2


@pytest.mark.parametrize('paramwise_cfg', [
    dict(norm_decay_mult=0., bias_decay_mult=0.5, bias_lr_mult=2.),
    dict(dwconv_decay_mult=0.1, flat_decay_mult=0.),
    dict(norm_decay_mult=0., custom_keys={'head': dict(lr_mult=10.),
                                          'backbone.stem': dict(lr_mult=0.1, decay_mult=0.3)}),
])
def test_one_step_is_that_of_a_group_for_each_parameter(paramwise_cfg):
    results = []
    for constructor in ('DefaultOptimWrapperConstructor', 'xvit_mm.OptimWrapperConstructor'):
        model = model_of()
        wrapper = wrapper_of(model, paramwise_cfg, constructor)
        step(model, wrapper)
        results.append((model.state_dict(), settings_of(wrapper, model), wrapper))
    (expected, settings, many), (found, same_settings, few) = results
    assert same_settings == settings
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert len(few.optimizer.param_groups) < 0.1 * len(many.optimizer.param_groups)


def test_custom_keys_count_with_the_depth_and_override_the_decay_rule():
    model = model_of('CrossViT')
    keys = {'cls_token': dict(decay_mult=0.5), 'pos_embed': dict(lr_mult=0.1)}
    found = settings_of(wrapper_of(model, dict(**BOTH, custom_keys=keys)), model)
    lr = pytest.approx(LR * RATE**7)
    assert found['backbone.embeds.0.cls_token'] == (lr, 0.5 * DECAY)
    assert found['backbone.embeds.0.pos_embed'] == (pytest.approx(0.1 * LR * RATE**7), 0.)


def test_custom_keys_that_change_nothing_make_no_group_of_their_own():
    keys = {'head': dict(lr_mult=1.), 'neck': dict(decay_mult=1.)}
    wrapper = wrapper_of(model_of(), dict(custom_keys=keys))
    assert len(wrapper.optimizer.param_groups) == 1


def test_without_options_everything_is_in_one_group_at_the_optimizers_settings():
    model = model_of()
    assert len(wrapper_of(model, None).optimizer.param_groups) == 1
    assert set(settings_of(wrapper_of(model, {}), model).values()) == {(LR, DECAY)}


def test_schedulers_scale_every_group_and_the_logs_show_the_base_learning_rate():
    model = model_of()
    wrapper = wrapper_of(model, BOTH)
    before = settings_of(wrapper, model)
    scheduler = MultiStepLR(wrapper, milestones=[1], gamma=0.1)
    step(model, wrapper)
    scheduler.step()
    for key, (lr, decay) in settings_of(wrapper, model).items():
        assert (lr, decay) == (pytest.approx(0.1 * before[key][0]), before[key][1])
    assert all(group['initial_lr'] == pytest.approx(LR * group['lr_scale'])
               for group in wrapper.optimizer.param_groups)
    shown = wrapper.get_lr()
    assert shown['lr'][0] == shown['base_lr'][0] == pytest.approx(0.1 * LR)


def test_training_goes_on_from_a_saved_state():
    # Without drop path: what is dropped in the second step depends on the first.
    model = model_of(drop_path_rate=0.)
    wrapper = wrapper_of(model, BOTH)
    step(model, wrapper)
    saved = copy.deepcopy((model.state_dict(), wrapper.state_dict()))
    step(model, wrapper)
    other = model_of(drop_path_rate=0.)
    resumed = wrapper_of(other, BOTH)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    step(other, resumed)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_models_wrapped_for_distributed_training_get_the_same_settings(tmp_path):
    model = model_of()
    expected = settings_of(wrapper_of(model, BOTH), model)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model)
        assert settings_of(wrapper_of(wrapped, BOTH), model) == expected
    finally:
        torch.distributed.destroy_process_group()


def test_a_shared_parameter_is_refused_or_taken_once():
    model = model_of()
    model.twin = nn.Linear(8, 3)
    model.twin.weight = model.head.weight
    with pytest.raises(ConfigError, match='holds head.weight more than once.*bypass'):
        wrapper_of(model, BOTH)
    assert len(settings_of(wrapper_of(model, dict(**BOTH, bypass_duplicate=True)), model)) == len(
        list(model.parameters()))


@pytest.mark.parametrize('paramwise_cfg, message', [
    (dict(layer_decay_rate=0.), r'layer_decay_rate=0.0: .* above 0 and up to 1'),
    (dict(layer_decay_rate=1.5), 'layer_decay_rate=1.5'),
    (dict(layer_decay=0.75), "no entry 'layer_decay'; did you mean 'layer_decay_rate'"),
    (dict(num_layers=12), "no entry 'num_layers'; It takes layer_decay_rate"),
])
def test_settings_that_cannot_be_are_refused(paramwise_cfg, message):
    with pytest.raises(ConfigError, match=message):
        wrapper_of(model_of(), paramwise_cfg)


def test_a_missing_base_value_is_named():
    for missing, entry in (('lr', 'layer_decay_rate'), ('weight_decay', 'decay_weights_only')):
        cfg = dict(constructor='xvit_mm.OptimWrapperConstructor', paramwise_cfg={entry: 0.5},
                   optimizer=dict(type='AdamW', lr=LR, weight_decay=DECAY))
        del cfg['optimizer'][missing]
        with pytest.raises(ConfigError, match=f'{entry} needs optimizer.{missing}'):
            build_optim_wrapper(model_of(), cfg)


def test_a_backbone_that_does_not_count_its_layers_is_named():
    model = model_of()
    model.backbone = nn.Conv2d(3, 8, 1)
    with pytest.raises(ConfigError, match='Model with backbone Conv2d does not have'):
        wrapper_of(model, dict(layer_decay_rate=0.75))
    assert len(wrapper_of(model, dict(decay_weights_only=True)).optimizer.param_groups) == 2


def test_real_models_of_the_stack_are_understood():
    from mmpretrain.registry import MODELS as CLASSIFIERS
    model = CLASSIFIERS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='VisionTransformer', arch='deit-tiny', img_size=32),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=192)))
    found = settings_of(wrapper_of(model, BOTH), model)
    assert found['backbone.cls_token'] == (pytest.approx(LR * RATE**13), 0.)
    assert found['backbone.layers.11.attn.qkv.weight'] == (pytest.approx(LR * RATE), DECAY)
    assert found['head.fc.weight'] == (LR, DECAY)


@not_in_torch_2_1('fused optimizers on a CPU')
@pytest.mark.parametrize('settings', [
    dict(type='AdamW', lr=LR, weight_decay=DECAY), dict(type='SGD', lr=LR, momentum=0.9)])
def test_a_fused_step_on_a_cpu_is_the_same_step(settings, monkeypatch):
    monkeypatch.setattr(optimizers, 'get_device', lambda: 'cpu')
    wrapper = dict(type='OptimWrapper', optimizer=settings)
    results, fused = [], []
    for config in (wrapper, fuse_on_cpu(wrapper)):
        torch.manual_seed(0)
        model = nn.Linear(5, 7)
        built = build_optim_wrapper(model, config)
        for _ in range(3):
            built.update_params(model(torch.randn(4, 5)).square().sum())
        results.append(model.state_dict())
        fused.append(bool(built.optimizer.param_groups[0]['fused']))
    assert fused == [False, True]
    torch.testing.assert_close(*results)
    assert 'fused' not in settings


@pytest.mark.parametrize('device, optimizer', [
    ('cuda', dict(type='AdamW')), ('cpu', dict(type='LBFGS')), ('cpu', dict(type='Adam', fused=False)),
    ('cpu', dict(type='AdamW', foreach=True))])
def test_other_optimizers_are_left_alone(device, optimizer, monkeypatch):
    monkeypatch.setattr(optimizers, 'get_device', lambda: device)
    assert fuse_on_cpu(dict(optimizer=optimizer)) == dict(optimizer=optimizer)
    assert fuse_on_cpu(dict(type='OptimWrapper')) == dict(type='OptimWrapper')
