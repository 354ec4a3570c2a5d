"""Official checkpoints in every released form, on every path, and what is refused."""
import argparse
import os
import re

import numpy as np
import pytest
import torch
from golden import golden_record, golden_weights
from mmengine.logging import HistoryBuffer
from mmengine.model import PretrainedInit
from mmengine.runner import load_checkpoint, load_state_dict
from torch import nn

from xvit_mm.checkpoints import (CROSSFORMER_NAMES, CheckpointError, find_state_dict,
                                 load_official, read_checkpoint)
from xvit_mm.models.backbones import CrossFormer
from xvit_mm.models.heads import CrossFormerClsHead

ARCH = dict(embed_dims=32, depths=(1, 1, 3, 1), num_heads=(1, 2, 4, 8), drop_path_rate=0.)


class Model(nn.Module):
    """A backbone in a larger model, as a classifier or a detector holds it."""

    def __init__(self, num_classes: int = 10, **settings) -> None:
        super().__init__()
        self.backbone = CrossFormer(ARCH, **settings)
        self.head = CrossFormerClsHead(num_classes, 256)
        self.neck = nn.Linear(4, 4)


@pytest.fixture(scope='module')
def official() -> dict[str, torch.Tensor]:
    """A state dict with official names: the table of names, read backwards."""
    return to_official(Model())


def to_official(model: nn.Module) -> dict[str, torch.Tensor]:
    return {official_name(name): torch.randn_like(tensor)
            for name, tensor in model.state_dict().items() if not name.startswith('neck')}


def official_name(name: str) -> str:
    """The name in the official code of a tensor of a backbone or one of our classification heads."""
    layers = dict(zip((0, 1, 3, 4, 6, 7, 9), ('pos_proj', 'pos1.0', 'pos1.2', 'pos2.0', 'pos2.2',
                                              'pos3.0', 'pos3.2')))
    name = name.removeprefix('backbone.').replace('head.fc', 'head')
    name = name.removeprefix('head.') if name.startswith('head.norm') else name
    name = name.replace('stages.0.embed', 'patch_embed').replace(
        'stages.0.post_norm', 'patch_embed.norm')
    name = re.sub(r'stages\.(\d)\.embed\.projs',
                  lambda m: f'layers.{int(m[1]) - 1}.downsample.reductions', name)
    name = re.sub(r'stages\.(\d)\.pre_norm',
                  lambda m: f'layers.{int(m[1]) - 1}.downsample.norm', name)
    name = re.sub(r'position_bias\.layers\.(\d)', lambda m: f'pos.{layers[int(m[1])]}', name)
    return name.replace('stages.', 'layers.')


def prefixed(state_dict, prefix):
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def assert_backbone_is(backbone, official_state_dict):
    expected = CROSSFORMER_NAMES.translate(official_state_dict).backbone
    own = backbone.state_dict()
    assert set(own) == set(expected)
    assert all(torch.equal(own[name], expected[name]) for name in own)


FORMS = {
    'bare': lambda s: s,
    'model': lambda s: {'model': s, 'epoch': 3},
    'state_dict': lambda s: {'state_dict': s, 'meta': {}},
    'ema only': lambda s: {'model_ema': s},
    'module.': lambda s: {'model': prefixed(s, 'module.')},
    'backbone.': lambda s: {'state_dict': prefixed(s, 'backbone.')},
    'module.backbone.': lambda s: {'state_dict': prefixed(s, 'module.backbone.')},
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('holder', ['backbone', 'model'])
def test_every_released_form_loads_completely(official, form, holder):
    model = Model()
    report = load_official(model if holder == 'model' else model.backbone, FORMS[form](official))
    assert_backbone_is(model.backbone, official)
    total = len(model.backbone.state_dict())
    assert f'{total} of {total} backbone tensors loaded' in str(report)


def test_a_classifier_gets_its_head_too(official):
    model = Model()
    report = load_official(model, {'model': official})
    assert torch.equal(model.head.fc.weight, official['head.weight'])
    assert torch.equal(model.head.norm.bias, official['norm.bias'])
    assert report.missing == ['neck.bias', 'neck.weight'] and not report.unexpected


def test_a_head_of_other_classes_is_left_out_and_said(official):
    model = Model(num_classes=7)
    before = model.head.fc.weight.clone()
    report = load_official(model, official)
    assert torch.equal(model.head.fc.weight, before)
    assert report.left_out['head.fc.weight'] == 'other shape (10 x 256 in the file, 7 x 256 here)'


def test_a_detection_checkpoint_fills_neck_and_heads_by_name(official):
    model = Model()
    neck = {'neck.weight': torch.randn(4, 4), 'neck.bias': torch.randn(4), 'bbox.w': torch.ones(1)}
    backbone = {n: t for n, t in official.items() if not n.startswith(('norm', 'head'))}
    report = load_official(model, {'state_dict': prefixed(backbone, 'backbone.') | neck})
    assert torch.equal(model.neck.weight, neck['neck.weight'])
    assert report.unexpected == ['bbox.w']


def test_derived_buffers_and_unbuilt_stages_are_left_out_and_said(official):
    buffers = {'layers.0.blocks.0.attn.biases': torch.ones(169, 2),
               'layers.0.blocks.0.attn.relative_position_index': torch.ones(49, 49),
               'layers.0.blocks.0.attn_mask': torch.ones(4, 49, 49)}
    backbone = CrossFormer(ARCH, out_indices=(0, 1))
    report = load_official(backbone, official | buffers)
    reasons = set(report.left_out.values())
    assert set(buffers) < set(report.left_out)
    assert reasons == {'derived from the weights', 'the classification head',
                       'of stages that out_indices does not need'}
    assert len(report.loaded) + len(report.left_out) == len(official) + len(buffers)


def test_raw_weights_come_before_averaged_ones_unless_asked(official):
    averaged = {name: tensor + 1 for name, tensor in official.items()}
    both = {'model': official, 'model_ema': averaged}
    model = Model()
    load_official(model, both)
    assert_backbone_is(model.backbone, official)
    load_official(model, both, ema=True)
    assert_backbone_is(model.backbone, averaged)


# The paths on which mm packages load.


@pytest.mark.parametrize('prefix', [None, 'backbone.'])
def test_init_cfg_takes_an_official_file(official, tmp_path, prefix):
    path = tmp_path / 'official.pth'
    torch.save({'state_dict': prefixed(official, prefix or '')}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    backbone = CrossFormer(ARCH, init_cfg=init_cfg | (dict(prefix=prefix) if prefix else {}))
    backbone.init_weights()
    assert_backbone_is(backbone, official)


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained', PretrainedInit], ids=str)
def test_every_way_to_write_init_cfg_covers_the_backbone_or_fails(official, tmp_path, kind):
    path = tmp_path / 'official.pth'
    init_cfg = [dict(type=kind, checkpoint=str(path)),
                dict(type='Constant', layer='Linear', val=7.)]
    torch.save(official, path)
    backbone = CrossFormer(ARCH, init_cfg=init_cfg)
    backbone.init_weights()
    assert_backbone_is(backbone, official)
    assert backbone.init_cfg == init_cfg
    torch.save(Model().head.state_dict(), path)
    with pytest.raises(CheckpointError, match='not a checkpoint of CrossFormer'):
        CrossFormer(ARCH, init_cfg=init_cfg).init_weights()


@pytest.mark.parametrize('load', [
    lambda model, state: model.load_state_dict(state, strict=False),
    lambda model, state: load_state_dict(model, state, strict=False),
], ids=['torch', 'mmengine'])
def test_load_state_dict_translates_official_names(official, load):
    model = Model()
    load(model, prefixed(official, 'backbone.'))
    assert_backbone_is(model.backbone, official)


def test_mmengine_load_checkpoint_takes_an_official_file(official, tmp_path):
    torch.save({'model': official}, tmp_path / 'official.pth')
    backbone = CrossFormer(ARCH)
    load_checkpoint(backbone, str(tmp_path / 'official.pth'))
    assert_backbone_is(backbone, official)


def test_own_checkpoints_load_with_the_same_report(tmp_path):
    source = Model()
    for name, state in (('model', source.state_dict()), ('backbone', source.backbone.state_dict())):
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
        target = Model()
        report = load_official(target.backbone, tmp_path / f'{name}.pth')
        assert 'backbone tensors loaded' in str(report)
        assert all(torch.equal(a, b) for a, b in zip(
            source.backbone.state_dict().values(), target.backbone.state_dict().values()))


# Reading.


class Options(dict):
    """Like the option classes that the official training scripts store."""


@pytest.mark.parametrize('in_zip_format', [True, False])
def test_foreign_objects_become_placeholders_and_history_is_kept(
    official, tmp_path, monkeypatch, in_zip_format
):
    history = HistoryBuffer([1., 2.], [1, 1])
    content = {'model': official, 'config': Options(lr=1), 'args': argparse.Namespace(epochs=3),
               'history': history, 'scalar': np.float64(0.5)}
    path = tmp_path / 'rich.pth'
    torch.save(content, path, _use_new_zipfile_serialization=in_zip_format)
    monkeypatch.delattr('test_checkpoints.Options')
    checkpoint = read_checkpoint(path)
    assert checkpoint['history'].mean(2) == 1.5 and checkpoint['scalar'] == 0.5
    assert not isinstance(checkpoint['args'], argparse.Namespace)
    assert set(find_state_dict(checkpoint)) == set(official)


class Malicious:

    def __reduce__(self):
        return os.mkdir, (os.environ['XVIT_MM_TEST_TARGET'],)


def test_code_in_a_file_is_never_run(official, tmp_path, monkeypatch):
    target = tmp_path / 'made'
    monkeypatch.setenv('XVIT_MM_TEST_TARGET', str(target))
    torch.save({'model': official, 'extra': Malicious()}, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='cannot be read.*mkdir.*do not trust'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not target.exists()


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save(torch.ones(2), tmp_path / 'tensor.pth')
    with pytest.raises(CheckpointError, match='holds a Tensor where a checkpoint is a dict'):
        read_checkpoint(tmp_path / 'tensor.pth')


def test_old_files_of_torch_before_1_6_are_read(official, tmp_path):
    path = tmp_path / 'old.pth'
    torch.save({'model': official}, path, _use_new_zipfile_serialization=False)
    assert set(find_state_dict(read_checkpoint(path))) == set(official)


def test_damaged_files_are_named_as_such(official, tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save({'model': official}, whole)
    for size in (0, 100, whole.stat().st_size // 2):
        cut = tmp_path / f'cut{size}.pth'
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(CheckpointError, match='damaged, cut off'):
            load_official(CrossFormer(ARCH), cut)
    (tmp_path / 'page.pth').write_text('<html>quota exceeded</html>')
    with pytest.raises(CheckpointError, match='damaged, cut off'):
        load_official(CrossFormer(ARCH), tmp_path / 'page.pth')
    with pytest.raises(FileNotFoundError, match='no.pth'):
        load_official(CrossFormer(ARCH), tmp_path / 'no.pth')


# What does not fit.


def unchanged(module: nn.Module, call) -> str:
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        call()
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    return str(caught.value)


def test_another_variant_is_named_and_nothing_is_loaded():
    s = golden_weights_of('s')
    for arch, other in (('t', "'t'"), ('b', "'b'"), ('pp_s', "'pp_s'")):
        backbone = CrossFormer(arch)
        message = unchanged(backbone, lambda: load_official(backbone, s))
        assert f"this is a checkpoint of CrossFormer 's', but the backbone is CrossFormer {other}" \
            in message
        assert 'backbone tensors fit' in message
        message = unchanged(backbone, lambda: backbone.load_state_dict(s, strict=False))
        assert "CrossFormer 's'" in message


def golden_weights_of(arch):
    from golden import FOLDER
    return golden_weights(golden_record(FOLDER / f'crossformer_{arch}_cls.json')['keys'])


@pytest.mark.parametrize('tensor, family', [
    ('layers.0.blocks.0.attn.relative_position_bias_table', 'Swin Transformer'),
    ('layer1.0.conv1.weight', 'ResNet'),
    ('patch_embed.0.proj.weight', 'CrossViT'),
    ('blocks.0.attn.qkv.weight', 'ViT or DeiT'),
])
def test_another_model_is_named(tensor, family):
    backbone = CrossFormer(ARCH)
    message = unchanged(backbone, lambda: load_official(backbone, {tensor: torch.ones(2)}))
    assert f'not a checkpoint of CrossFormer: it looks like {family}' in message


def test_an_incomplete_checkpoint_is_refused(official):
    backbone = CrossFormer(ARCH)
    part = {n: t for n, t in official.items() if 'blocks.0.mlp' not in n}
    assert 'missing' in unchanged(backbone, lambda: load_official(backbone, part))


def test_a_checkpoint_without_tensors_is_refused():
    with pytest.raises(CheckpointError, match="entries are .'epoch'"):
        load_official(CrossFormer(ARCH), {'epoch': 3})


def test_a_module_without_our_backbone_is_refused(official):
    with pytest.raises(TypeError, match='Linear holds no backbone of xvit_mm'):
        load_official(nn.Linear(2, 2), official)
    with pytest.raises(ValueError, match='several backbones'):
        load_official(nn.ModuleList([CrossFormer(ARCH), CrossFormer(ARCH)]), official)
