"""What the tools do on a CPU by themselves: folded BatchNorm, bfloat16, freed memory."""
import copy
import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from torch import nn

from small_models import SMALL
from xvit_mm.engine.hooks import FastInferenceHook, prepare_for_inference
from xvit_mm.registry import MODELS, OPTIM_WRAPPERS
from xvit_mm.utils import cpu
from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.config_options import use_amp


class Model(nn.Module):

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)[-1]


def backbone(name: str, **options: int) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **options))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize('name, channels', [('XFormer', 3), ('VTResNet', 4)])
def test_folding_is_on_a_copy_and_gives_the_same(name, channels):
    model = Model(backbone(name, in_channels=channels)).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    prepared = prepare_for_inference(model)
    assert prepared is not model and prepared.head is model.head
    folded = sum(isinstance(m, nn.BatchNorm2d) for m in prepared.backbone.modules())
    assert folded < sum(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules()) / 4
    image = torch.randn(2, channels, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(prepared(image), model(image), rtol=1e-3, atol=1e-4)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize('name', ['CrossFormer', 'CrossViT'])
def test_models_without_batchnorm_stay_as_they_are(name):
    model = Model(backbone(name))
    assert prepare_for_inference(model) is model


class NormFirst(nn.Module):
    """Its layers stand in the order of a convolution and its norm, but run in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.bias, 5.)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.conv(self.norm(x)),)


@pytest.mark.parametrize('backbone, warning', [
    (NormFirst(), 'its maps deviate by'),
    (nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), 'cannot be tried on noise')])
def test_a_backbone_that_folding_would_change_or_that_is_not_tried_stays_as_it_is(
    backbone, warning, capsys,
):
    model = Model(backbone).eval()
    assert prepare_for_inference(model) is model
    assert warning in capsys.readouterr().out


class NaNWhenFolded(nn.Module):
    """Folding turns its second map into NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        is_folded = not isinstance(self.norm, nn.BatchNorm2d)
        y = self.norm(self.conv(x))
        return y, y * torch.nan if is_folded else y


def test_a_backbone_that_folding_turns_into_nan_stays_as_it_is(caplog):
    model = Model(NaNWhenFolded()).eval()
    assert prepare_for_inference(model) is model


def test_a_test_runs_folded_and_leaves_the_model_as_it_was():
    model = Model(backbone('XFormer')).eval()
    before = model.backbone
    runner = type('R', (), dict(model=model, hooks=[], logger=logging.getLogger()))
    hook = FastInferenceHook()
    hook.before_test(runner)
    assert model.backbone is not before
    hook.after_test(runner)
    assert model.backbone is before
    FastInferenceHook(enabled=False).before_test(runner)
    assert model.backbone is before


@pytest.mark.parametrize('name', ['VTResNet', 'XFormer'])
def test_averaged_weights_are_swapped_into_the_model_itself(name):
    model = Model(backbone(name)).eval()
    averages = EMAHook()
    hooks = [averages, FastInferenceHook()]
    runner = type('R', (), dict(model=model, hooks=hooks, logger=logging.getLogger()))
    averages.before_run(runner)
    with torch.no_grad():
        for parameter in averages.ema_model.module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    images, trained = torch.randn(1, 3, 64, 64), copy.deepcopy(model)
    expected = averages.ema_model.module(images)

    hooks[1].before_test(runner)
    averages.before_test_epoch(runner)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-3)
    averages.after_test_epoch(runner)
    hooks[1].after_test(runner)
    for found, wanted in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_amp_on_a_cpu_is_bfloat16_if_there_are_instructions(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), loss_scale=512.)))
    monkeypatch.setattr(cpu, 'has_bf16_instructions', lambda: False)
    with pytest.raises(ConfigError, match='--amp needs a GPU, or a CPU with instructions for bf'):
        use_amp(cfg)
    monkeypatch.setattr(cpu, 'has_bf16_instructions', lambda: True)
    use_amp(cfg)
    layer = nn.Linear(2, 1)
    wrapper = OPTIM_WRAPPERS.build(dict(
        type=cfg.optim_wrapper.type, optimizer=torch.optim.SGD(layer.parameters(), lr=0.1)))
    assert cfg.optim_wrapper.type == 'xvit_mm.CPUAmpOptimWrapper'
    before = layer.weight.clone()
    with wrapper.optim_context(layer):
        loss = layer(torch.ones(1, 2)).sum()
    assert loss.dtype == torch.bfloat16
    wrapper.update_params(loss)
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight, before - 0.1)


@pytest.mark.parametrize('flags, expected', [
    ('flags\t: fpu avx512_bf16 amx_tile', True), ('flags : fpu avx512f', False),
    ('Features : fp asimd bf16', True), ('nothing', False)])
def test_instructions_are_read_from_the_system(flags, expected, monkeypatch, tmp_path):
    (tmp_path / 'cpuinfo').write_text(f'processor : 0\n{flags}\n')
    monkeypatch.setattr(cpu, 'Path', lambda path: tmp_path / 'cpuinfo')
    assert cpu.has_bf16_instructions() is expected
