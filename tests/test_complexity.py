"""The counter of parameters and multiply-adds against counts by hand and published figures."""
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from small_models import SMALL
from torch import nn

from xvit_mm.apis.command_line import run_tool
from xvit_mm.models.backbones import CrossFormer
from xvit_mm.models.heads import CrossFormerClsHead
from xvit_mm.models.layers import attend
from xvit_mm.registry import MODELS
from xvit_mm.utils.complexity import count_macs, measure_cost
from xvit_mm.utils.config import ConfigError

TOOL = Path(__file__).parents[1] / 'tools' / 'get_flops.py'
HEADS, TOKENS, DIMS = 2, 8 * 8, 4


class Function(nn.Module):
    """A module that calls a function of the images."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def heads(x):
    """[1, 3, 8, 8] to tokens [1, heads, N, d]."""
    return x.new_ones(1, HEADS, TOKENS, DIMS)


def written_out_attention(x):
    query = heads(x)
    return (query @ query.mT / DIMS**0.5).softmax(-1) @ query


BY_HAND = {
    'convolution': (nn.Conv2d(3, 6, 3, padding=1), 8 * 8 * 6 * 3 * 9),
    'with a stride': (nn.Conv2d(3, 6, 3, stride=2, padding=1), 4 * 4 * 6 * 3 * 9),
    'depth-wise': (nn.Conv2d(3, 3, 5, padding=2, groups=3), 8 * 8 * 3 * 25),
    'transposed': (nn.ConvTranspose2d(3, 6, 2, stride=2), 8 * 8 * 3 * 6 * 4),
    'along one axis': (Function(lambda x: F.conv1d(x.flatten(2), x.new_ones(5, 3, 3), padding=1)),
                       64 * 5 * 3 * 3),
    'linear': (nn.Linear(8, 5), 3 * 8 * 5 * 8),
    'linear of a vector': (Function(lambda x: F.linear(x.flatten(), x.new_ones(7, 192))), 7 * 192),
    'matmul': (Function(lambda x: x @ x.mT), 3 * 8 * 8 * 8),
    'bmm': (Function(lambda x: torch.bmm(x[0], x[0])), 3 * 8 * 8 * 8),
    'einsum': (Function(lambda x: torch.einsum('bchw,bdhw->bcd', x, x)), 3 * 3 * 64),
    'fused attention': (Function(lambda x: F.scaled_dot_product_attention(*[heads(x)] * 3)),
                        2 * HEADS * TOKENS * TOKENS * DIMS),
    'attention with a bias': (
        Function(lambda x: attend(*[heads(x)] * 3, x.new_ones(1, HEADS, TOKENS, TOKENS))),
        2 * HEADS * TOKENS * TOKENS * DIMS),
    'attention of a plain kernel': (
        Function(lambda x: F.scaled_dot_product_attention(*[heads(x)[0]] * 3)),
        2 * HEADS * TOKENS * TOKENS * DIMS),
    'attention written out': (Function(written_out_attention),
                              2 * HEADS * TOKENS * TOKENS * DIMS),
    'matrix and vector': (Function(lambda x: x[0, 0] @ x[0, 0, 0]), 8 * 8),
    'two vectors': (Function(lambda x: x.flatten() @ x.flatten()), 192),
    'norms': (nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(8), nn.GroupNorm(3, 3)), 0),
    'activations': (nn.Sequential(nn.GELU(), nn.SiLU(), nn.Softmax(-1)), 0),
    'pooling and resizing': (nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)), 0),
}


@pytest.mark.parametrize('module, macs', BY_HAND.values(), ids=BY_HAND)
def test_count_equals_the_count_by_hand(module, macs):
    assert count_macs(module, 8) == macs


def test_fused_attention_of_a_cpu_is_what_torch_alone_would_miss():
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as plain:
        F.scaled_dot_product_attention(*[torch.ones(1, HEADS, TOKENS, DIMS)] * 3)
    if plain.get_total_flops():
        pytest.skip('this version of torch counts it')
    assert count_macs(BY_HAND['fused attention'][0], 8) > 0


# Multiply-adds of the eight models with their classifiers at 224, in G, as the papers count them.
CROSSFORMER = dict(t=2.86, s=4.91, b=9.16, l=16.11, pp_s=4.43, pp_b=9.59, pp_l=16.72, pp_h=22.00)


@pytest.mark.parametrize('arch, macs', CROSSFORMER.items())
def test_crossformer_costs_what_its_papers_say(arch, macs):
    backbone = CrossFormer(arch)
    model = nn.Sequential(backbone, CrossFormerClsHead(1000, backbone.out_channels[-1]))
    assert count_macs(model, 224) / 1e9 == pytest.approx(macs, rel=0.03)


@pytest.mark.parametrize('depth, macs, parameters', [(18, 1814, 11.69), (50, 4089, 25.56)])
def test_resnet_costs_what_is_published(depth, macs, parameters):
    models = pytest.importorskip('torchvision.models')
    cost = measure_cost(getattr(models, f'resnet{depth}')(), 224)
    assert cost.macs / 1e6 == pytest.approx(macs, abs=1)
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.01)


# Whole models of OpenMMLab, by part.

BACKBONE = dict(type='xvit_mm.CrossFormer', **SMALL['CrossFormer'])
CHANNELS = [32, 64, 128, 256]
FPN = dict(type='mmdet.FPN', in_channels=CHANNELS, out_channels=16, num_outs=5)
CLASSIFIER = dict(
    type='mmpretrain.ImageClassifier', backbone=BACKBONE,
    head=dict(type='xvit_mm.CrossFormerClsHead', num_classes=7, in_channels=256))
SEGMENTOR = dict(
    type='mmseg.EncoderDecoder', backbone=BACKBONE, train_cfg=dict(), test_cfg=dict(mode='whole'),
    decode_head=dict(type='mmseg.SegformerHead', in_channels=CHANNELS, in_index=[0, 1, 2, 3],
                     channels=16, num_classes=7, norm_cfg=dict(type='BN')))
RETINANET = dict(
    type='mmdet.RetinaNet', backbone=BACKBONE, neck=FPN,
    bbox_head=dict(
        type='mmdet.RetinaHead', num_classes=7, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type='mmdet.AnchorGenerator', strides=[4, 8, 16, 32, 64],
                              ratios=[1.0], octave_base_scale=4, scales_per_octave=1)))
ROI = dict(out_channels=16, featmap_strides=[4, 8, 16, 32])
FASTER_RCNN = dict(
    type='mmdet.FasterRCNN', backbone=BACKBONE, neck=FPN,
    rpn_head=dict(
        type='mmdet.RPNHead', in_channels=16, feat_channels=16,
        anchor_generator=dict(type='mmdet.AnchorGenerator', scales=[8], ratios=[1.0],
                              strides=[4, 8, 16, 32, 64])),
    roi_head=dict(
        type='mmdet.StandardRoIHead',
        bbox_roi_extractor=dict(
            type='mmdet.SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=3), **ROI),
        bbox_head=dict(type='mmdet.Shared2FCBBoxHead', in_channels=16, fc_out_channels=8,
                       roi_feat_size=3, num_classes=7)),
    train_cfg=None,
    test_cfg=dict(
        rpn=dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7),
                 min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)))


@pytest.mark.parametrize('config, parts', [
    (CLASSIFIER, {'backbone', 'head'}),
    (SEGMENTOR, {'backbone', 'decode_head'}),
    (RETINANET, {'backbone', 'neck', 'bbox_head'}),
    (FASTER_RCNN, {'backbone', 'neck', 'rpn_head', 'roi_head'}),
], ids=lambda value: value['type'] if isinstance(value, dict) else '')
def test_parts_of_an_openmmlab_model_add_up(config, parts):
    model = MODELS.build(ConfigDict(config))
    cost = measure_cost(model, (64, 96))
    assert set(cost.parts) == parts
    assert all(part.macs > 0 and part.parameters > 0 for part in cost.parts.values())
    assert sum(part.macs for part in cost.parts.values()) == cost.macs
    assert cost.parts['backbone'].macs == count_macs(model.backbone, (64, 96))
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_images_have_the_channels_that_the_model_takes():
    cfg = dict(type='xvit_mm.CrossFormer', **SMALL['CrossFormer'])
    macs = [count_macs(MODELS.build(dict(cfg, in_channels=c)), 64) for c in (1, 3, 5)]
    assert macs[0] < macs[1] < macs[2] and macs[2] - macs[1] == macs[1] - macs[0]


def test_neck_and_head_of_a_detector_equal_the_count_by_hand():
    parts = measure_cost(MODELS.build(RETINANET), 64).parts
    pixels = [16 * 16, 8 * 8, 4 * 4, 2 * 2]
    lateral = sum(n * c * 16 for n, c in zip(pixels, CHANNELS))
    assert parts['neck'].macs == lateral + sum(pixels) * 16 * 16 * 9
    towers = 2 * 16 * 16 * 9 + 16 * 7 * 9 + 16 * 4 * 9
    assert parts['bbox_head'].macs == (sum(pixels) + 1) * towers


# The counter leaves no traces.


@pytest.mark.parametrize('training', [True, False])
def test_counting_changes_neither_mode_nor_weights_nor_results(training):
    model = MODELS.build(dict(BACKBONE, frozen_stages=1)).train(training)
    modes = [m.training for m in model.modules()]
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    first = count_macs(model, 64)
    assert count_macs(model, 64) == first  # nothing remembered lowers the second count
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_models_of_any_dtype_and_device_are_counted():
    module = nn.Conv2d(3, 6, 3)
    expected = count_macs(module, (8, 9))
    assert expected == 6 * 7 * 6 * 27
    assert count_macs(module.bfloat16(), (8, 9)) == expected
    assert count_macs(module.to('meta'), (8, 9)) == expected
    assert count_macs(nn.Conv2d(5, 6, 3), (8, 9), in_channels=5) == 6 * 7 * 6 * 45


@pytest.mark.parametrize('size', [0, (8, -1), (8,), (8, 8, 8), 8.5, ('8', '8')])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match='input_size=.*height, width'):
        count_macs(nn.Identity(), size)


# The command-line tool.


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('get_flops', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(f"default_scope = 'mmdet'\nmodel = {RETINANET!r}\n")
    return path


def test_tool_shows_every_part_and_the_total(tool, config, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['get_flops', str(config), '--shape', '64', '96'])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'mmdet.RetinaNet at 64 x 96'
    assert [line.split()[0] for line in lines[1:]] == [
        'part', 'backbone', 'neck', 'bbox_head', 'total']
    cost = measure_cost(MODELS.build(RETINANET), (64, 96))
    assert lines[-1].split()[1:] == [f'{cost.parameters:,}', f'{cost.macs / 1e9:.3f}']


@pytest.mark.parametrize('options, message', [
    (['no_such_config'], 'no_such_config'),
    (['CONFIG', '--shape', '0'], '--shape 0: give height and width'),
    (['CONFIG', '--shape', '1', '2', '3'], '--shape 1 2 3: give height and width'),
    (['CONFIG', '--cfg-options', 'model.backbone.arch=m'], "CrossFormer has no arch 'm'"),
    (['CONFIG', '--cfg-options', 'model.type=NoSuchDetector'], 'NoSuchDetector'),
    (['CONFIG', '--cfg-options', 'default_scope=None'], 'give --shape HEIGHT WIDTH'),
])
def test_tool_says_what_is_wrong_in_one_line(tool, config, monkeypatch, capsys, options, message):
    arguments = [str(config) if option == 'CONFIG' else option for option in options]
    monkeypatch.setattr(sys, 'argv', ['get_flops', *arguments])
    with pytest.raises(ConfigError):
        tool.main()
    with pytest.raises(SystemExit) as exit_code:
        run_tool(tool.main)
    error = capsys.readouterr().err
    assert exit_code.value.code == 1 and message in error and len(error.splitlines()) == 1
