"""Everything in a checkpoint is checked before anything of it is copied."""
import time

import pytest
import torch
from mmengine.model import BaseModel
from small_models import SMALL
from test_checkpoints import ARCH, Model, official_name, to_official, unchanged
from test_runner import Plain, build
from torch import nn

from xvit_mm.checkpoints import CheckpointError, find_state_dict, load_official, read_checkpoint
from xvit_mm.models.backbones import CrossFormer, VTResNet
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import load_config

NAME = 'stages.1.blocks.0.mlp.fc1.weight'
FOREIGN = {
    'sparse': (lambda t: t.to_sparse(), 'not dense'),
    'quantised': (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), 'quantised'),
    'meta': (lambda t: t.to('meta'), 'a meta tensor, without values'),
    'complex': (lambda t: t.to(torch.cfloat), 'torch.complex64'),
    'integer': (lambda t: t.to(torch.int32), 'torch.int32'),
    'bool': (lambda t: t > 0, 'torch.bool'),
}
BROKEN = {'nan': float('nan'), 'inf': float('inf'), 'too large': 1e300}


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    return to_official(Model())


def broken(state_dict, name, change):
    return state_dict | {name: change(state_dict[name].clone())}


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.double()
    tensor.view(-1)[-1] = value
    return tensor


@pytest.mark.parametrize('part', ['backbone', 'head'])
@pytest.mark.parametrize('kind', FOREIGN)
@pytest.mark.parametrize('names', ['official', 'own'])
def test_tensors_of_another_kind_are_refused(official, kind, names, part):
    change, message = FOREIGN[kind]
    own = {'backbone': f'backbone.{NAME}', 'head': 'head.fc.weight'}[part]
    model = Model()
    weights = official if names == 'official' else Model().state_dict()
    name = official_name(own) if names == 'official' else own
    said = unchanged(model, lambda: load_official(model, broken(weights, name, change)))
    assert f'is {message}' in said and 'Nothing was loaded' in said
    assert NAME in said or 'head.fc.weight' in said


@pytest.mark.parametrize('value', BROKEN)
def test_values_that_are_not_finite_are_refused_with_the_first_name(official, value):
    model = Model()
    names = [official_name(f'backbone.stages.{i}.blocks.0.norm1.bias') for i in (2, 1)]
    weights = dict(official)
    for name in names:
        weights[name] = with_value(weights[name], BROKEN[value])
    said = unchanged(model, lambda: load_official(model, weights))
    first = next(name for name in weights if name in names)
    number = names.index(first)
    assert f'backbone.stages.{(2, 1)[number]}.blocks.0.norm1.bias, the first of 2' in said
    said = unchanged(model.backbone, lambda: model.backbone.load_state_dict(weights, strict=False))
    assert 'NaN or infinite' in said


def test_large_finite_values_and_other_precisions_are_taken(official):
    name = official_name(f'backbone.{NAME}')
    backbone = CrossFormer(ARCH)
    load_official(backbone, broken(official, name, lambda t: t.fill_(3e38)))
    assert (backbone.stages[1].blocks[0].mlp.fc1.weight == 3e38).all()
    for dtype in torch.float16, torch.bfloat16, torch.float64:
        load_official(backbone, {n: t.to(dtype) for n, t in official.items()})
        weight = backbone.stages[1].blocks[0].mlp.fc1.weight
        assert weight.dtype == torch.float32
        assert torch.equal(weight, official[name].to(dtype).float())


@pytest.mark.parametrize('change', [FOREIGN['sparse'][0], lambda t: with_value(t, float('nan'))])
def test_the_runner_refuses_them_for_any_model(change, tmp_path):
    weights = broken(Plain().state_dict(), 'net.0.weight', change)
    torch.save(weights, tmp_path / 'weights.pth')
    runner = build(tmp_path)
    said = unchanged(runner.model, lambda: runner.load_checkpoint(str(tmp_path / 'weights.pth')))
    assert 'net.0.weight' in said


def test_names_that_are_numbers_are_refused():
    with pytest.raises(CheckpointError, match='have keys like 0 where a state dict has names'):
        load_official(CrossFormer(ARCH), {0: torch.ones(1), 'a': torch.ones(1)})


def test_a_checkpoint_that_holds_itself_is_refused():
    checkpoint = {'a': 1}
    checkpoint['model'] = checkpoint
    with pytest.raises(CheckpointError, match='no tensors in this checkpoint'):
        find_state_dict(checkpoint)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_many_tensors_of_another_model_take_no_time(official, prefix):
    weights = {prefix + name: tensor for name, tensor in official.items()}
    one = torch.ones(1)
    many = {f'encoder.layer{i // 10}.part{i % 10}.weight': one for i in range(20_000)}
    model, start = Model(), time.process_time()
    assert len(load_official(model, weights | many).unexpected) == 20_000
    assert time.process_time() - start < 3


@pytest.mark.parametrize('size', [0, 1, 3, 30, 10_000, 20_000, 40_000, 60_000, 66_000, 100_000])
@pytest.mark.parametrize('in_zip_format', [True, False])
def test_a_file_that_was_cut_is_named_on_every_path(size, in_zip_format, official, tmp_path):
    torch.save(official, tmp_path / 'whole.pth', _use_new_zipfile_serialization=in_zip_format)
    cut = tmp_path / 'cut.pth'
    cut.write_bytes((tmp_path / 'whole.pth').read_bytes()[:size])
    init_cfg = dict(type='Pretrained', checkpoint=str(cut))
    for read in (read_checkpoint, lambda path: load_official(CrossFormer(ARCH), path),
                 lambda path: CrossFormer(ARCH, init_cfg=init_cfg).init_weights()):
        with pytest.raises(CheckpointError, match=rf'cut.pth \({size:,} bytes\) cannot be read'):
            read(cut)


def test_a_cut_file_is_named_by_the_runner(tmp_path):
    torch.save({'state_dict': {'net.0.weight': torch.ones(300, 300)}}, tmp_path / 'whole.pth')
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'whole.pth').read_bytes()[:20_000])
    runner = build(tmp_path)
    for load in runner.load_checkpoint, runner.resume:
        with pytest.raises(CheckpointError, match='cut.pth .*damaged, cut off'):
            load(str(tmp_path / 'cut.pth'))


def test_safetensors_files_are_read_on_every_path(official, tmp_path):
    save_file = pytest.importorskip('safetensors.torch').save_file
    path = str(tmp_path / 'weights.safetensors')
    save_file({name: tensor.contiguous() for name, tensor in official.items()}, path)
    model, other = Model(), Model()
    load_official(model, path)
    other.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)
    other.backbone.init_weights()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, other.backbone.state_dict()[name])
    assert torch.equal(model.head.fc.weight, official['head.weight'])
    save_file(Plain().state_dict(), path)
    build(tmp_path).load_checkpoint(path, strict=True)
    (tmp_path / 'cut.pth').write_bytes((tmp_path / 'weights.safetensors').read_bytes()[:-1])
    with pytest.raises(CheckpointError, match='cut.pth .*damaged, cut off'):
        read_checkpoint(tmp_path / 'cut.pth')


# Several backbones.


class Pair(BaseModel):

    def __init__(self, **settings) -> None:
        super().__init__()
        self.teacher = CrossFormer(ARCH)
        self.student = CrossFormer(**settings or SMALL['CrossFormer'])

    def forward(self, inputs, mode='tensor'):
        return inputs


def test_several_backbones_take_a_file_that_names_each(tmp_path):
    source, target = Pair(), Pair()
    report = load_official(target, {f'module.{n}': t for n, t in source.state_dict().items()})
    assert not report.missing and not report.unexpected
    assert 'CrossFormer' in str(report) and report.backbone_tensors == len(source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(
        source.state_dict().values(), target.state_dict().values()))
    weights = source.state_dict()
    del weights['student.stages.0.blocks.0.norm1.bias']
    assert 'missing' in unchanged(target, lambda: load_official(target, weights))


@pytest.mark.parametrize('form', ['official', 'own', 'one of them'])
def test_several_backbones_are_named_where_a_file_does_not_say_which(form, official, tmp_path):
    model = Pair()
    weights = {'official': official, 'own': model.student.state_dict(), 'one of them': {
        n: t for n, t in model.state_dict().items() if n.startswith('teacher.')}}[form]
    torch.save(weights, tmp_path / 'weights.pth')
    runner = build(tmp_path, model)
    for load in lambda path: load_official(runner.model, path), runner.load_checkpoint:
        with pytest.raises(ValueError, match=r'Pair holds several backbones \(teacher, student\)') \
                as caught:
            load(str(tmp_path / 'weights.pth'))
        assert isinstance(caught.value, CheckpointError)  # one line, in the tools


def test_versions_of_modules_go_with_their_tensors(tmp_path, monkeypatch):
    seen = []
    load = nn.LayerNorm._load_from_state_dict
    monkeypatch.setattr(nn.LayerNorm, '_version', 5, raising=False)
    torch.save(Model().state_dict(), tmp_path / 'weights.pth')
    monkeypatch.setattr(
        nn.LayerNorm, '_load_from_state_dict',
        lambda self, state, prefix, metadata, *args: (
            seen.append(metadata.get('version')), load(self, state, prefix, metadata, *args))[1])
    load_official(Model(), tmp_path / 'weights.pth')
    assert set(seen) == {5}


# Whole models: the names of mmdet 2.x and mmseg 0.x, written out.


def weighted(*names: str) -> set[str]:
    return {f'{name}.{kind}' for name in names for kind in ('weight', 'bias')}


def normed(*names: str) -> set[str]:
    """Convolutions without bias and their BatchNorms."""
    return {f'{name}.{part}' for name in names for part in (
        'conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var',
        'bn.num_batches_tracked')}


def pyramid(lateral: int, outputs: int) -> set[str]:
    return weighted(*(f'neck.lateral_convs.{i}.conv' for i in range(lateral)),
                    *(f'neck.fpn_convs.{i}.conv' for i in range(outputs)))


OFFICIAL_PARTS = {
    'retinanet_crossformer_s_coco': pyramid(3, 5) | weighted(
        'bbox_head.retina_cls', 'bbox_head.retina_reg',
        *(f'bbox_head.{kind}_convs.{i}.conv' for kind in ('cls', 'reg') for i in range(4))),
    'mask_rcnn_crossformer_s_coco': pyramid(4, 4) | weighted(
        'rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg',
        *(f'roi_head.bbox_head.{n}' for n in ('shared_fcs.0', 'shared_fcs.1', 'fc_cls', 'fc_reg')),
        *(f'roi_head.mask_head.convs.{i}.conv' for i in range(4)),
        'roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits'),
    'fpn_crossformer_s_ade20k': pyramid(4, 4) | weighted('decode_head.conv_seg') | normed(
        *(f'decode_head.scale_heads.{n}' for n in ('0.0', '1.0', '2.0', '2.2', '3.0', '3.2',
                                                   '3.4'))),
    'upernet_crossformer_s_ade20k': weighted(
        'decode_head.conv_seg', 'auxiliary_head.conv_seg') | normed(
        *(f'decode_head.psp_modules.{i}.1' for i in range(4)), 'decode_head.bottleneck',
        *(f'decode_head.{kind}_convs.{i}' for kind in ('lateral', 'fpn') for i in range(3)),
        'decode_head.fpn_bottleneck', 'auxiliary_head.convs.0'),
}


@pytest.mark.training
@pytest.mark.parametrize('config', OFFICIAL_PARTS)
def test_official_files_of_whole_models_load_strictly(config):
    cfg = load_config(f'{config}.py')
    cfg.model.backbone.arch = dict(ARCH, embed_dims=96)
    pytest.importorskip('mmdet' if 'coco' in config else 'mmseg')
    from mmengine.registry import DefaultScope
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if 'SyncBN' in str(cfg.model):
            from xvit_mm.utils.config_options import revert_sync_bn
            revert_sync_bn(cfg)
        model = MODELS.build(cfg.model)
    parts = {n: t for n, t in model.state_dict().items() if not n.startswith('backbone.')}
    assert set(parts) == OFFICIAL_PARTS[config]
    weights = {f'backbone.{official_name(n)}': torch.full_like(t, 0.5)
               for n, t in model.backbone.state_dict().items()}
    weights |= {name: torch.ones_like(tensor) for name, tensor in parts.items()}
    report = load_official(model, {'state_dict': weights, 'meta': {}}, strict=True)
    assert set(report.loaded) == set(model.state_dict()) and not report.left_out
    assert all((t == (0.5 if n.startswith('backbone.') else 1)).all()
               for n, t in model.state_dict().items())
    name = min(parts)
    for wrong, message in (
            ({n: t for n, t in weights.items() if n != name},
             f'{name} of the model not in the file'),
            (weights | {name: torch.ones(3)}, f'{name} of another shape'),
            (weights | {'neck.extra': torch.ones(3)}, 'neck.extra of the file not in the model')):
        said = unchanged(model, lambda: load_official(model, wrong, strict=True))
        assert f'does not cover the whole {type(model).__name__}: {message}. Weights' in said
    load_official(model, weights | {'neck.extra': torch.ones(3)})


def test_testing_the_weights_of_the_catalogue_is_strict(tmp_path, monkeypatch):
    """An official file that lacks a head is an error when it is tested, not when it is trained."""
    from xvit_mm.checkpoints import addresses

    class Released:

        @staticmethod
        def fetch():
            return tmp_path / 'weights.pth'

    monkeypatch.setattr(addresses, 'find_released', lambda name: Released)
    source = Model()
    torch.save({n: t for n, t in source.state_dict().items() if n != 'neck.bias'},
               tmp_path / 'weights.pth')

    class Whole(Model, BaseModel):

        def forward(self, inputs, mode='tensor'):
            return [inputs]

    loader = torch.utils.data.DataLoader([dict(inputs=torch.ones(2))])
    settings = dict(test_dataloader=loader, test_cfg=dict(), test_evaluator=[])
    runner = build(tmp_path, Whole(), load_from='official://some', **settings)
    message = 'does not cover the whole Whole: neck.bias of the model'
    with pytest.raises(CheckpointError, match=message):
        runner.test()
    build(tmp_path, Whole(), load_from='official://some').load_or_resume()


def test_vt_resnet_of_the_released_kind_is_checked_too():
    weights = VTResNet(18).resnet.state_dict()
    weights = {n: with_value(t, float('nan')) if n == 'conv1.weight' else t
               for n, t in weights.items()}
    model = VTResNet(18)
    assert 'resnet.conv1.weight' in unchanged(model, lambda: load_official(model, weights))
