"""VT-FPN: published sizes, the promises of an FPN, and detectors and segmentors with it."""
import copy

import pytest
import torch
from torch import nn
from versions import HALF

from xvit_mm.checkpoints import CheckpointError
from xvit_mm.models.necks import VTFPN
from xvit_mm.registry import MODELS
from xvit_mm.utils.complexity import count_macs

RESNET_50 = (256, 512, 1024, 2048)
CHANNELS = (8, 16, 32, 64)
SMALL = dict(depth=18, base_channels=8, token_channels=32, num_tokens=4)


def pyramid(height: int, width: int, channels=RESNET_50, batch: int = 1) -> list[torch.Tensor]:
    return [torch.randn(batch, c, -(-height // s), -(-width // s))
            for c, s in zip(channels, (4, 8, 16, 32))]


class NeckAlone(nn.Module):
    """A neck on the maps that ResNet-50 makes of an image."""

    def __init__(self, neck: nn.Module) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, image):
        return self.neck([x.to(image) for x in pyramid(*image.shape[2:])])


@pytest.mark.parametrize('size, ours, fpn', [
    ((800, 1216), (8.35, 8.65), 55.1), ((473, 473), (2.0, 2.1), 12.9)])
def test_vt_fpn_costs_a_sixth_of_fpn(size, ours, fpn):
    from mmdet.models.necks import FPN
    with torch.device('meta'):
        necks = VTFPN(RESNET_50, 256, num_outs=4), FPN(list(RESNET_50), 256, 4)
    macs, fpn_macs = (count_macs(NeckAlone(neck), size) / 1e9 for neck in necks)
    assert ours[0] <= macs <= ours[1]
    assert abs(fpn_macs - fpn) < 0.05
    assert fpn_macs / macs > 6.1


def neck(**settings) -> VTFPN:
    torch.manual_seed(0)
    settings = dict(num_outs=4, token_channels=32, zero_init_residual=False) | settings
    return VTFPN(CHANNELS, 16, **settings)


@pytest.mark.parametrize('settings', [
    {}, dict(num_layers=3), dict(with_top_down=True), dict(num_tokens=(16, 8, 4, 2)),
    dict(num_heads=2), dict(norm_cfg=None), dict(num_outs=6), dict(token_channels=16),
    dict(num_outs=5, start_level=1, add_extra_convs=True),
    dict(num_outs=5, start_level=1, add_extra_convs='on_output', relu_before_extra_convs=True),
    dict(num_outs=6, add_extra_convs='on_lateral'), dict(num_outs=2, start_level=1, end_level=2),
    dict(num_outs=3, start_level=1, norm_cfg=dict(type='GN', num_groups=4)),
], ids=str)
def test_neck_has_the_shapes_of_fpn_and_trains_all_its_parameters(settings):
    from mmdet.models.necks import FPN
    vt_fpn = neck(**settings).train()
    names = ['num_outs', 'start_level', 'end_level', 'add_extra_convs', 'relu_before_extra_convs']
    fpn = FPN(list(CHANNELS), 16, **dict(num_outs=4) | {
        n: v for n, v in settings.items() if n in names})
    for size in ((64, 96), (97, 50), (33, 33)):
        maps = pyramid(*size, CHANNELS, batch=2)
        outputs = vt_fpn(maps)
        assert isinstance(outputs, tuple)
        assert [x.shape for x in outputs] == [x.shape for x in fpn(maps)]
        assert all(x.is_contiguous() for x in outputs)
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    without = [n for n, p in vt_fpn.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_neck_exchanges_information_between_levels_and_not_between_images():
    vt_fpn = neck().eval()
    maps = pyramid(64, 96, CHANNELS, batch=2)
    changed = [*maps[:3], maps[3] + torch.tensor([1., 0.]).view(2, 1, 1, 1)]
    with torch.no_grad():
        for before, after in zip(vt_fpn(maps), vt_fpn(changed)):
            assert (before[0] - after[0]).abs().max() > 1e-6
            torch.testing.assert_close(before[1], after[1])
        for together, alone in zip(vt_fpn(maps), vt_fpn([x[1:] for x in maps])):
            torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_each_scale_and_the_gain_reach_their_layers_and_no_others():
    def scales(**settings):
        first, later = neck(num_layers=2, norm_cfg=dict(type='BN'), **settings).layers
        layers = dict(
            scale_filters=first.tokenizers[0], scale_recurrent=later.tokenizers[0],
            scale_transformer=first.transformer, scale_projector=first.projectors[0])
        gains = [m.query.norm.weight[0].item() for m in layers.values() if hasattr(m, 'query')]
        return {name: layer.scale < 1 for name, layer in layers.items()}, gains
    default, gains = scales()
    assert default == dict.fromkeys(default, True) | dict(scale_filters=False)
    assert gains == [1] * 3
    for name, value in default.items():
        assert scales(**{name: not value}) == (default | {name: not value}, gains)
    assert not any(scales(scale_logits=False)[0].values())
    assert scales(query_gain=0.5) == (default, [0.5] * 3)


def test_projectors_of_the_neck_can_start_at_zero():
    vt_fpn = neck(zero_init_residual=True).eval()
    maps = pyramid(64, 96, CHANNELS)
    for lateral, x, out in zip(vt_fpn.lateral_convs, maps, vt_fpn(maps)):
        assert torch.equal(lateral(x), out)


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF])
@pytest.mark.parametrize('scale', [1, 10])
def test_neck_is_finite_in_low_precision(dtype, scale):
    vt_fpn = neck(num_layers=2).eval()
    maps = [scale * x for x in pyramid(300, 500, CHANNELS)]
    low = copy.deepcopy(vt_fpn).to(dtype)
    outputs = low([x.to(dtype) for x in maps])
    assert all(x.isfinite().all() for x in outputs)
    sum(x.float().mean() for x in outputs).backward()
    assert all(p.grad.isfinite().all() for p in low.parameters())
    if scale == 1:
        for exact, x in zip(vt_fpn(maps), outputs):
            assert (exact - x).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize('wrong, message', [
    (dict(num_outs=3), 'num_outs=3.*4 outputs'),
    (dict(start_level=4), 'start_level=4'),
    (dict(end_level=7), 'end_level=7'),
    (dict(num_tokens=(8, 8)), r'num_tokens=\(8, 8\).*4 levels'),
    (dict(add_extra_convs='on_top'), "add_extra_convs='on_top'.*on_input"),
    (dict(num_layers=0), 'num_layers=0: must be at least 1'),
    (dict(num_heads=0), 'num_heads=0: both must be at least 1'),
    (dict(token_channels=30), 'token_channels=30.*multiple of 4'),
    (dict(num_heads=3, token_channels=24), 'num_heads=3.*divide the 16 channels'),
])
def test_settings_of_the_neck_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        neck(**wrong)


def test_neck_refuses_another_number_of_maps():
    with pytest.raises(ValueError, match='3 maps were given'):
        neck()(pyramid(64, 64, CHANNELS)[:3])


@pytest.mark.parametrize('name, value', [
    ('scale_transformer', False), ('num_heads', 2), ('with_top_down', True),
    ('scale_filters', True), ('add_extra_convs', 'on_lateral'), ('num_tokens', [8, 4, 4, 4])])
def test_weights_made_with_other_settings_are_refused_with_both_values(name, value):
    common = dict(num_outs=5, add_extra_convs='on_output')
    made, here = neck(**common | {name: value}), neck(**common)
    before = copy.deepcopy(here.state_dict())
    with pytest.raises(CheckpointError) as error:
        here.load_state_dict(made.state_dict())
    assert f'{name}={value!r}' in str(error.value)
    assert f'{name}={here.recorded[name]!r}' in str(error.value)
    assert all(torch.equal(t, before[n]) for n, t in here.state_dict().items())
    here.load_state_dict(here.state_dict())


def test_weights_of_before_settings_were_saved_load_strictly_and_with_a_warning(log):
    weights = {n: t for n, t in neck().state_dict().items() if 'extra_state' not in n}
    neck().load_state_dict(weights, strict=True)
    assert 'do not say with which settings' in log.getvalue() and 'num_heads=1' in log.getvalue()


BACKBONE = dict(type='xvit_mm.VTResNet', **SMALL)
TO_NECK = dict(type='xvit_mm.VTFPN', in_channels=[8, 16, 32, 64], out_channels=16,
               token_channels=32, num_tokens=4)


def test_retinanet_with_vt_backbone_and_neck_takes_a_loss_step():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    model = MODELS.build(dict(
        type='mmdet.RetinaNet', data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
        backbone=BACKBONE,
        neck=dict(TO_NECK, num_outs=5, start_level=1, add_extra_convs='on_input'),
        bbox_head=dict(
            type='mmdet.RetinaHead', num_classes=3, in_channels=16, feat_channels=16,
            stacked_convs=1,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='mmdet.FocalLoss'), loss_bbox=dict(type='mmdet.L1Loss')),
        train_cfg=dict(
            assigner=dict(type='mmdet.MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4),
            sampler=dict(type='mmdet.PseudoSampler'), allowed_border=-1, pos_weight=-1),
        test_cfg=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)))
    sample = DetDataSample(
        metainfo=dict(img_shape=(96, 128), pad_shape=(96, 128), batch_input_shape=(96, 128)),
        gt_instances=InstanceData(
            bboxes=torch.tensor([[8., 8., 70., 80.]]), labels=torch.tensor([1])))
    losses = model.loss(torch.randn(2, 3, 96, 128), [sample, sample])
    sum(losses['loss_cls'] + losses['loss_bbox']).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_segmentor_with_vt_backbone_neck_and_semantic_fpn_takes_a_loss_step():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    model = MODELS.build(dict(
        type='mmseg.EncoderDecoder', data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
        backbone=BACKBONE, neck=dict(TO_NECK, num_outs=4),
        decode_head=dict(
            type='mmseg.FPNHead', in_channels=[16] * 4, in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32], channels=16, num_classes=3,
            norm_cfg=dict(type='BN')),
        train_cfg=dict(), test_cfg=dict(mode='whole')))
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 70, 96))))
    losses = model.loss(torch.randn(2, 3, 70, 96), [sample, sample])
    losses['decode.loss_ce'].backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if 'conv_seg' not in n)
