"""Exported models: what their parts compute, the files, and what is refused."""
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from small_models import SMALL, TINY
from torch import nn

from xvit_mm.apis import build_model, export
from xvit_mm.apis.export import export_model
from xvit_mm.apis.export_formats import NOTES, export_program
from xvit_mm.apis.export_parts import part_of
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import ConfigError, load_config

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('onnx', 'onnxruntime'))),
    reason='pip install onnx onnxruntime')
META = dict(img_shape=(96, 128), ori_shape=(96, 128), scale_factor=(1., 1.))


def config(kind: str, backbone: str = 'VTResNet') -> Config:
    settings = dict(type=f'xvit_mm.{backbone}', **SMALL[backbone])
    if kind == 'classifier':
        return Config(dict(
            default_scope='mmpretrain', data_preprocessor=dict(mean=[1.], std=[2.], to_rgb=True),
            model=dict(
                type='ImageClassifier', backbone=settings, neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=5, in_channels=64))))
    if kind == 'segmentor':
        return Config(dict(default_scope='mmseg', model=dict(
            type='EncoderDecoder', backbone=settings, decode_head=dict(
                type='FCNHead', in_channels=64, channels=8, num_classes=5,
                norm_cfg=dict(type='BN')))))
    channels = list(MODELS.build(settings).out_channels)
    cfg = load_config({'retinanet': 'retinanet_crossformer_demo', 'yolov3': 'yolov3_xformer_coco',
                       'mask_rcnn': 'mask_rcnn_crossformer_s_coco'}[kind])
    if kind == 'yolov3':
        cfg.merge_from_dict({
            'model.backbone': dict(settings, out_indices=(1, 2, 3), _delete_=True),
            'model.neck.in_channels': channels[:0:-1], 'model.neck.out_channels': [32, 16, 8],
            'model.bbox_head.in_channels': [32, 16, 8], 'model.bbox_head.out_channels': [32, 16, 8],
        })
    else:
        cfg.merge_from_dict({
            'model.backbone': dict(settings, _delete_=True), 'model.neck.in_channels': channels,
            'model.neck.out_channels': 32})
    if kind == 'retinanet':
        cfg.merge_from_dict({
            'model.bbox_head.in_channels': 32, 'model.bbox_head.feat_channels': 32})
    if kind == 'mask_rcnn':
        cfg.merge_from_dict({'model.rpn_head.in_channels': 32, 'model.rpn_head.feat_channels': 32})
    return cfg


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config(kind)).eval()


def predicted(model: nn.Module, images: torch.Tensor, **settings) -> InstanceData:
    """The boxes of mmdet for the first image, before NMS and without any threshold."""
    outputs = model.bbox_head(model.extract_feat(images))
    return model.bbox_head.predict_by_feat(
        *outputs, batch_img_metas=[META] * len(images), cfg=Config(settings), rescale=False,
        with_nms=False)[0]


@torch.no_grad()
def test_boxes_of_retinanet_are_those_of_mmdet_before_nms():
    model = model_of('retinanet')
    images = torch.randn(2, 3, 96, 128)
    boxes, scores = part_of(model, 'all')[0](images)
    expected = predicted(model, images, score_thr=-1., nms_pre=10**6)
    # mmdet has an entry for each box and class, cut off at the border of the image.
    flat = scores[0].flatten()
    assert len(expected) == len(flat) and boxes.shape == (2, len(flat) // 5, 4)
    torch.testing.assert_close(expected.scores.sort().values, flat.sort().values)
    best = expected.scores.argmax()
    place = flat.argmax()
    clipped = boxes[0, place // 5].clamp(min=0)
    clipped = torch.minimum(clipped, torch.tensor([128., 96., 128., 96.]))
    torch.testing.assert_close(clipped, expected.bboxes[best], rtol=1e-4, atol=1e-3)
    assert expected.labels[best] == place % 5


@torch.no_grad()
def test_boxes_of_yolov3_are_those_of_mmdet_before_nms():
    model = model_of('yolov3')
    images = torch.randn(2, 3, 96, 128)
    boxes, scores = part_of(model, 'all')[0](images)
    expected = predicted(model, images, score_thr=-1., conf_thr=-1., nms_pre=10**6)
    objects = model.bbox_head(model.extract_feat(images))[0]
    assert boxes.shape[1] == sum(3 * level.shape[2] * level.shape[3] for level in objects)
    assert len(expected) == boxes.shape[1] * 80
    best = expected.scores.argmax()
    place = scores[0].flatten().argmax()
    torch.testing.assert_close(boxes[0, place // 80], expected.bboxes[best])
    torch.testing.assert_close(scores[0].flatten().sort().values, expected.scores.sort().values)


@torch.no_grad()
@pytest.mark.parametrize('kind, part, names', [
    ('classifier', 'raw', ['logits']), ('classifier', 'all', ['scores']),
    ('segmentor', 'raw', ['logits']), ('segmentor', 'all', ['logits']),
    ('segmentor', 'backbone', ['map0', 'map1', 'map2', 'map3']),
    ('retinanet', 'raw', [f'{n}_level{i}' for n in ('classes', 'boxes') for i in range(3)]),
    ('yolov3', 'raw', [f'output0_level{i}' for i in range(3)]),
    ('mask_rcnn', 'raw', [f'{n}_level{i}' for n in ('classes', 'boxes') for i in range(5)]),
])
def test_every_part_has_its_outputs(kind, part, names):
    model = model_of(kind)
    module, found = part_of(model, part)
    assert found == names
    images = torch.randn(2, 3, 64, 96)
    outputs = module(images)
    if (kind, part) == ('classifier', 'all'):
        expected = model.head(model.extract_feat(images)).softmax(1)
        torch.testing.assert_close(outputs[0], expected)
    if (kind, part) == ('segmentor', 'all'):
        assert outputs[0].shape == (2, 5, 64, 96)


@needs_onnx
@pytest.mark.training
@pytest.mark.parametrize('kind, channels', [
    ('classifier', 4), ('segmentor', 3), ('retinanet', 3), ('yolov3', 3)])
def test_files_hold_for_sizes_and_batches_that_the_export_did_not_see(kind, channels, tmp_path):
    import onnx
    cfg = config(kind)
    cfg.model.backbone.in_channels = channels
    torch.manual_seed(0)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'weights.pth')
    path = tmp_path / 'new' / 'model.onnx'
    deviations = export_model(cfg, tmp_path / 'weights.pth', path, size=(96, 128))
    assert len({d.shape for d in deviations}) == 3 and len({d.shape[0] for d in deviations}) == 2
    assert all(d.relative < 1e-4 for d in deviations)
    assert [path] == list(path.parent.iterdir())
    graph = onnx.load(str(path)).graph
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert shape == ['batch', channels, 'height', 'width']
    notes = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert notes['channels'] == ('BGR' if kind == 'segmentor' else 'RGB')
    assert len(notes['classes'].splitlines()) == {'yolov3': 80}.get(kind, 5)


needs_programs = pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'), reason='torch 2.7 or newer')
# Batch, height and width: one pixel, one group of CrossFormer, odd sides, long images.
ANY_SHAPES = ((1, 1, 1), (2, 7, 5), (1, 20, 400), (3, 50, 97), (2, 160, 33), (1, 225, 290))


@torch.no_grad()
@needs_programs
@pytest.mark.training
@pytest.mark.parametrize('name', sorted(TINY))
def test_a_program_takes_every_size_that_the_backbone_takes(name):
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type=f'xvit_mm.{name}', **TINY[name])).eval()
    program = export_program(backbone, (224, 256)).module()
    for batch, height, width in ANY_SHAPES:
        images = torch.randn(batch, 3, height, width)
        for found, expected in zip(program(images), backbone(images)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast('cpu', torch.bfloat16):
        approximate = program(images)
    for found, expected in zip(approximate, backbone(images)):
        assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


@needs_programs
@pytest.mark.training
@pytest.mark.parametrize('kind, part', [
    ('classifier', 'all'), *[
        pytest.param(*case, marks=pytest.mark.slow) for case in [
            ('segmentor', 'all'), ('retinanet', 'raw'), ('retinanet', 'all'), ('yolov3', 'all'),
            ('mask_rcnn', 'raw')]],
])
def test_programs_of_whole_models(kind, part, tmp_path):
    cfg, path = config(kind), tmp_path / 'model.pt2'
    deviations = export_model(cfg, None, path, part=part)
    assert all(d.relative < 1e-4 for d in deviations)
    notes = dict.fromkeys([NOTES], '')
    program = torch.export.load(str(path), extra_files=notes)
    notes = json.loads(notes[NOTES])
    assert {d.output for d in deviations} == set(notes['outputs'])
    if kind == 'classifier':
        assert notes['channels'] == 'RGB' and len(notes['classes'].splitlines()) == 5
        assert program.module()(torch.zeros(4, 3, 40, 31))[0].shape == (4, 5)


class Branches(nn.Module):
    def forward(self, images):
        return (images[:, :, :2] if images.shape[2] > images.shape[3] else images,)


@needs_programs
def test_a_module_that_depends_on_sizes_is_refused():
    with pytest.raises(export.ExportError, match='cannot export this: .*data-dependent'):
        export_program(Branches(), (64, 96))


class Pyramid(nn.Module):
    """The extra level of mmdet's FPN."""

    def forward(self, images):
        return (nn.functional.max_pool2d(images, 1, stride=2),)


@needs_programs
@pytest.mark.training
def test_levels_that_pooling_adds_are_there_at_every_size():
    program = export_program(Pyramid(), (64, 96)).module()
    for batch, height, width in ANY_SHAPES:
        images = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(program(images), Pyramid()(images))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize('kind, backbone, part', [
    *[('segmentor', name, 'backbone') for name in sorted(SMALL)], ('segmentor', 'XFormer', 'all'),
    ('classifier', 'VTResNet', 'raw'), ('classifier', 'VTResNet', 'all'),
    ('retinanet', 'VTResNet', 'raw'), ('retinanet', 'VTResNet', 'all'),
    ('yolov3', 'VTResNet', 'all'), ('mask_rcnn', 'VTResNet', 'raw'),
])
def test_files_of_the_new_exporter_compute_what_the_model_does(kind, backbone, part, tmp_path):
    pytest.importorskip('onnxscript', reason='pip install onnxscript')
    cfg = config(kind, backbone)
    if (kind, backbone) == ('segmentor', 'XFormer'):
        cfg.model.decode_head.in_channels = 32
    deviations = export_model(cfg, None, tmp_path / 'model.onnx', part=part, dynamo=True)
    worst = max(deviations, key=lambda d: d.relative)
    print(kind, backbone, part, worst)
    assert worst.relative < 1e-4


@needs_onnx
@pytest.mark.training
@pytest.mark.parametrize('option, backbone, most', [
    ('fp16', 'VTResNet', 0.8), ('int8', 'CrossViT', 0.9)])
def test_fewer_bits_make_a_smaller_file_that_deviates_a_little(option, backbone, most, tmp_path):
    import onnx
    cfg, sizes = config('segmentor', backbone), []
    for on in (False, True):
        torch.manual_seed(0)
        path = tmp_path / f'{on}.onnx'
        deviations = export_model(
            cfg, None, path, part='backbone', size=(64, 96), **{option: on})
        sizes.append(path.stat().st_size)
        assert (max(d.relative for d in deviations) > 1e-4) == on
    assert sizes[1] < most * sizes[0]
    graph = onnx.load(str(path)).graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}


@needs_onnx
def test_a_file_that_deviates_is_not_left(tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'TOLERANCE', -1.)
    with pytest.raises(export.ExportError, match='model.onnx is not written.* deviates by'):
        export_model(config('classifier'), None, tmp_path / 'model.onnx', size=(64, 64))
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_file_that_gives_nan_at_some_size_is_not_left(tmp_path, monkeypatch):
    compared = [export.Deviation((1, 3, 8, 8), 'scores', value, value)
                for value in (1e-6, float('nan'), 1e-6)]
    monkeypatch.setattr(export, 'compare', lambda *_: compared)
    with pytest.raises(export.ExportError, match='scores deviates by nan'):
        export_model(config('classifier'), None, tmp_path / 'model.onnx', size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind, options, message', [
    ('mask_rcnn', {}, '--part all does not exist of a MaskRCNN.*Choose backbone, or raw'),
    ('classifier', dict(path='model.pth'), "--out '.*model.pth': the name must end in .onnx"),
    ('classifier', dict(path='model.pt2', dynamo=True),
     '--opset, --dynamo, --int8 and --fp16 are for .onnx'),
    ('classifier', dict(int8=True, fp16=True), '--int8 and --fp16: choose one'),
    ('retinanet', dict(fp16=True), '--fp16: 16 bits are too few .*Choose --part raw'),
    ('classifier', dict(size=(0, 10)), '--size 0 10: give sides of at least 32 pixels'),
    ('classifier', dict(opset=3), 'cannot export this: Unsupported'),
    ('classifier', dict(part='neck'), "--part 'neck': choose from backbone, raw, all"),
])
@needs_onnx
def test_what_cannot_be_exported_is_refused(kind, options, message, tmp_path):
    path = tmp_path / options.pop('path', 'model.onnx')
    with pytest.raises(ConfigError, match=message):
        export_model(config(kind), None, path, **options)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='exporting needs onnx, onnxruntime, onnxscript: pip '
                                          'install onnx onnxruntime onnxscript'):
        export_model(config('classifier'), None, Path(tmp_path, 'model.onnx'), dynamo=True)
