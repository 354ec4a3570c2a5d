"""Weights of VT-ResNet: those of ResNets, its own, and the settings that are saved with them."""
import copy

import pytest
import torch
import torchvision
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import get_state_dict, load_state_dict, weights_to_cpu
from torch import nn

from xvit_mm.checkpoints import CheckpointError, load_official
from xvit_mm.models.backbones import VTResNet
from xvit_mm.models.necks import VTFPN

SMALL = dict(depth=18, base_channels=8, token_channels=32, num_tokens=4)


def small(**settings) -> VTResNet:
    torch.manual_seed(0)
    return VTResNet(**SMALL | dict(zero_init_residual=False) | settings)


def torchvision_resnet(depth: int) -> nn.Module:
    torch.manual_seed(1)
    model = getattr(torchvision.models, f'resnet{depth}')().eval()
    for name, buffer in model.named_buffers():
        if name.endswith(('mean', 'var')):
            buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def torchvision_maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x, maps = model.maxpool(model.relu(model.bn1(model.conv1(x)))), []
    for layer in (model.layer1, model.layer2, model.layer3):
        maps.append(x := layer(x))
    return maps


@pytest.mark.parametrize('depth, tensors', [(18, 90), (50, 258)])
def test_torchvision_weights_load_and_give_torchvisions_maps(depth, tensors):
    official = torchvision_resnet(depth)
    backbone = VTResNet(depth).eval()
    report = load_official(backbone, official.state_dict())
    assert report.backbone_tensors == len(report.loaded) == tensors
    assert all(name.startswith('vt.') for name in report.new) and not report.missing
    assert {name.split('.')[0] for name in report.left_out} == {'layer4', 'fc'}
    assert not report.unexpected
    assert f'{tensors} of {tensors} backbone tensors loaded' in str(report)
    image = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), torchvision_maps(official, image)):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_files_that_do_not_count_batches_load():
    weights = {n: t for n, t in torchvision_resnet(18).state_dict().items()
               if 'num_batches' not in n}
    assert load_official(VTResNet(18), weights).backbone_tensors == 75


def test_pretrained_init_keeps_the_start_of_the_visual_tokens(tmp_path):
    path = tmp_path / 'resnet18.pth'
    torch.save(torchvision_resnet(18).state_dict(), path)
    backbone = VTResNet(18, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    before = copy.deepcopy(backbone.vt.state_dict())
    backbone.init_weights()
    assert torch.equal(backbone.resnet.conv1.weight, torch.load(path)['conv1.weight'])
    assert all(torch.equal(t, before[n]) for n, t in backbone.vt.state_dict().items())


def test_a_detectors_resnet_checkpoint_loads_into_a_detector_with_vt():
    official = torchvision_resnet(18)
    state = {f'backbone.{n}': t for n, t in official.state_dict().items()}
    detector = nn.Module()
    detector.backbone = VTResNet(18)
    missing, unexpected = detector.load_state_dict(state, strict=False)
    assert all(name.startswith('backbone.vt.') for name in missing) and not unexpected
    assert torch.equal(detector.backbone.resnet.layer3[1].conv2.weight,
                       official.layer3[1].conv2.weight)


def test_a_classifiers_weights_load_into_a_dense_backbone_and_back():
    cls, dense = small(out_indices=(3,), out_type='tokens'), small()
    torch.nn.init.normal_(cls.vt[0].tokenizer.coefficients.weight)
    report = load_official(dense, cls.state_dict())
    assert report.new and all(name.startswith('vt.1.projector.') for name in report.new)
    assert torch.equal(dense.vt[0].tokenizer.coefficients.weight,
                       cls.vt[0].tokenizer.coefficients.weight)
    back = load_official(cls, dense.state_dict())
    assert {n.split('.')[2] for n in back.left_out} == {'projector'} and not back.new
    whole = {f'backbone.{n}': t for n, t in cls.state_dict().items()}
    assert len(load_official(dense, whole).loaded) == len(report.loaded)


@pytest.mark.parametrize('other', [
    dict(token_norm=False), dict(recurrent=False), dict(num_modules=1), dict(num_modules=3),
    dict(tokenizer='clustering'), dict(interaction='none'),
    dict(out_type='tokens', with_projector=False),
], ids=str)
def test_own_weights_of_other_visual_tokens_are_refused(other):
    source, target = small(), small(**other)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(CheckpointError, match='Nothing was loaded|compute something else'):
        load_official(target, source.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    with pytest.raises(CheckpointError, match='Nothing was loaded|compute something else'):
        load_official(source, target.state_dict())


LOADERS = dict(
    torch=lambda model, weights: model.load_state_dict(weights, strict=False),
    mmengine=lambda model, weights: load_state_dict(model, weights, strict=False),
    official=load_official)


@pytest.mark.parametrize('name, value', [
    ('scale_filters', None), ('scale_recurrent', None), ('scale_transformer', None),
    ('scale_projector', None), ('num_heads', 4), ('tokenizer', 'pooling')])
@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize('whole', [False, True], ids=['backbone', 'detector'])
def test_weights_made_with_other_settings_are_refused_with_both_values(name, value, load, whole):
    """They fit in name and shape, and would compute something else."""
    common = dict(value_conv=False, recurrent=False, tokenizer='clustering')
    value = not getattr(small(**common).settings, name) if value is None else value
    made, here = small(**common | {name: value}), small(**common)
    recorded = getattr(here.settings, name)
    shapes = [{n: t.shape for n, t in model.state_dict().items()} for model in (made, here)]
    assert shapes[0] == shapes[1]
    if whole:
        made, here = (nn.ModuleDict(dict(backbone=model)) for model in (made, here))
    before = copy.deepcopy(here.state_dict())
    with pytest.raises(CheckpointError, match='compute something else') as error:
        load(here, made.state_dict())
    assert f'{name}={value!r}' in str(error.value) and f'{name}={recorded!r}' in str(error.value)
    assert all(torch.equal(t, before[n]) for n, t in here.state_dict().items())
    load(here, {n: t for n, t in made.state_dict().items() if 'extra_state' not in n})


def test_a_neck_that_refuses_keeps_the_backbone_from_being_loaded():
    def model(num_heads):
        neck = VTFPN([64, 128], 16, num_outs=2, token_channels=32, num_heads=num_heads)
        return nn.ModuleDict(dict(backbone=small(), neck=neck))

    made, here = model(1), model(2)
    nn.init.ones_(made['backbone'].resnet.conv1.weight)
    before = copy.deepcopy(here.state_dict())
    with pytest.raises(CheckpointError, match='num_heads=1.*num_heads=2.*Nothing was loaded'):
        load_official(here, made.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in here.state_dict().items())


def test_settings_of_the_start_alone_do_not_matter_to_weights():
    other = small(query_gain=1., zero_init_residual=True, drop_path_rate=0.1)
    small().load_state_dict(other.state_dict(), strict=True)


def test_weights_of_before_settings_were_saved_load_strictly_and_with_a_warning(log):
    source = small()
    weights = {n: t for n, t in source.state_dict().items() if 'extra_state' not in n}
    small().load_state_dict(weights, strict=True)
    report = load_official(small(), weights)
    assert log.getvalue().count('do not say with which settings') == 2
    assert "tokenizer='filter'" in log.getvalue() and 'scale_filters=' in log.getvalue()
    assert len(report.loaded) == len(weights) and report.new == ['vt._extra_state']


def test_weights_of_a_resnet_load_without_a_word_about_settings(log):
    load_official(VTResNet('r18'), torchvision_resnet(18).state_dict())
    assert 'settings' not in log.getvalue()


def test_settings_survive_saving_averaging_and_copying(tmp_path):
    made = small(scale_projector=False)
    runner_like = weights_to_cpu(get_state_dict(made))
    torch.save(runner_like, tmp_path / 'weights.pth')
    averaged = ExponentialMovingAverage(made, update_buffers=True)
    averaged.update_parameters(made)
    for weights in (
            torch.load(tmp_path / 'weights.pth', weights_only=True), dict(made.state_dict()),
            copy.deepcopy(made).state_dict(), averaged.module.state_dict()):
        with pytest.raises(CheckpointError, match='scale_projector=False.*scale_projector=True'):
            small().load_state_dict(weights)
        small(scale_projector=False).load_state_dict(weights, strict=True)


def test_report_counts_every_own_tensor_of_the_visual_tokens():
    source, target = small(), small()
    total = len(source.state_dict())
    assert f'{total} of {total} backbone tensors loaded' in str(
        load_official(target, source.state_dict()))
    maps_only = small(out_indices=(0, 1, 2))
    assert all(n.startswith('vt.') for n in load_official(maps_only, source.state_dict()).left_out)
    report = load_official(target, maps_only.state_dict())
    assert report.backbone_tensors == len(report.loaded) == len(maps_only.state_dict())
    assert set(report.new) == {n for n in target.state_dict() if n.startswith('vt.')}


def test_fewer_stages_take_what_they_need_from_a_whole_file():
    report = load_official(VTResNet(18, out_indices=(1,)), torchvision_resnet(18).state_dict())
    assert report.backbone_tensors == 60
    assert 'of stages that out_indices does not need' in str(report)


def test_weights_of_another_depth_are_refused_by_name():
    with pytest.raises(CheckpointError, match="VTResNet 'r34', but the backbone is VTResNet 'r18'"):
        load_official(VTResNet('r18'), torchvision_resnet(34).state_dict())
