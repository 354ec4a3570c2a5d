"""Checkpoints of CrossViT: official names, other sizes, other variants and models."""

import pytest
import torch
import torch.nn.functional as F
from crossvit_models import TINY, as_ibm, classifier, images, logits, official, randomise
from torch import nn

from xvit_mm.checkpoints import CheckpointError, load_official
from xvit_mm.models import CrossFormer, CrossViT
from xvit_mm.models.layers import FUSIONS


@pytest.mark.parametrize('wrap', [
    lambda s: s,
    as_ibm,
    lambda s: dict(model=as_ibm(s), epoch=300),
    lambda s: dict(state_dict={f'module.{n}': t for n, t in s.items()}),
], ids=['timm', 'ibm', 'ibm in model', 'timm in state_dict, module.'])
def test_official_names_load_completely(wrap):
    model = classifier('tiny')
    weights = official('tiny')
    report = load_official(model, wrap(weights))
    assert set(report.loaded) == set(model.state_dict())
    assert not report.missing and not report.unexpected and not report.new
    assert model.backbone.embeds[1].pos_embed.equal(weights['pos_embed_1'])
    assert model.backbone.encoders[2].blocks[1][3].mlp.fc2.bias.equal(
        weights['blocks.2.blocks.1.3.mlp.fc2.bias'])


def test_official_file_in_init_cfg_and_under_a_detector_prefix(tmp_path):
    weights = official('tiny')
    torch.save(as_ibm(weights), tmp_path / 'crossvit_tiny_224.pth')
    backbone = CrossViT('tiny', init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'crossvit_tiny_224.pth')))
    backbone.init_weights()
    assert backbone.embeds[0].cls_token.equal(weights['cls_token_0'])
    detector = nn.ModuleDict(dict(backbone=CrossViT('tiny'), neck=nn.Linear(2, 2)))
    detector.load_state_dict({f'backbone.{n}': t for n, t in weights.items()}, strict=False)
    assert detector.backbone.embeds[0].cls_token.equal(weights['cls_token_0'])


def test_pyramid_is_reported_as_new_and_keeps_its_values():
    backbone = CrossViT('tiny')
    before = {n: t.clone() for n, t in backbone.pyramid.state_dict().items()}
    report = load_official(backbone, official('tiny'))
    assert report.new == sorted(f'pyramid.{n}' for n in before)
    assert not report.missing and not report.unexpected
    assert report.backbone_tensors == len(report.loaded) == len(backbone.state_dict()) - len(before)
    assert 'new, not in the checkpoint: pyramid.' in str(report)
    assert 'the classification head' in set(report.left_out.values())
    assert all(t.equal(before[n]) for n, t in backbone.pyramid.state_dict().items())


def test_own_weights_move_between_dense_prediction_and_classification():
    dense, tokens = randomise(CrossViT(TINY)), CrossViT(TINY, out_type='cls_token')
    report = load_official(tokens, dense.state_dict())
    assert set(report.left_out) == {n for n in dense.state_dict() if n.startswith('pyramid.')}
    assert not report.missing and not report.unexpected and not report.new
    assert tokens.encoders[0].fusion.attns[0].wq.weight.equal(
        dense.encoders[0].fusion.attns[0].wq.weight)
    back = load_official(CrossViT(TINY), tokens.state_dict())
    assert back.new and not back.missing
    without_norms = {n: t for n, t in dense.state_dict().items() if 'pyramid.norms' not in n}
    with pytest.raises(CheckpointError, match='pyramid.norms.0.bias.* missing'):
        load_official(CrossViT(TINY), without_norms)


def test_interpolating_positions_at_load_and_at_run_time_is_the_same():
    weights = official('tiny')
    stored, resized = classifier('tiny').eval(), classifier('tiny', img_size=384).eval()
    load_official(stored, weights)
    report = load_official(resized, weights)
    assert report.fitted == [f'backbone.embeds.{i}.pos_embed' for i in (0, 1)]
    assert 'fitted to another image size: backbone.embeds.0.pos_embed' in str(report)
    assert [e.pos_embed.shape[1] for e in resized.backbone.embeds] == [1 + 34**2, 1 + 24**2]
    image = images(408, 408)
    with torch.no_grad():
        torch.testing.assert_close(logits(stored, image), logits(resized, image))


def test_positions_of_another_size_also_fit_in_a_plain_load():
    source, target = CrossViT(TINY), CrossViT(TINY | dict(img_size=96))
    target.load_state_dict(source.state_dict())
    for old, new in zip(source.embeds, target.embeds):
        side, other = (round((e.pos_embed.shape[1] - 1)**0.5) for e in (old, new))
        grid = old.pos_embed[:, 1:].mT.unflatten(2, (side, side))
        expected = F.interpolate(grid, size=(other, other), mode='bicubic').flatten(2).mT
        torch.testing.assert_close(new.pos_embed[:, 1:], expected)
        assert new.pos_embed[:, :1].equal(old.pos_embed[:, :1])


def test_other_number_of_classes_leaves_the_classifiers_out():
    model = classifier('tiny', 7)
    report = load_official(model, official('tiny'))
    assert set(report.left_out) == {f'head.fcs.{i}.{n}' for i in (0, 1) for n in ('weight', 'bias')}
    assert all(reason.startswith('other shape') for reason in report.left_out.values())
    assert 'head.norms.1.weight' in report.loaded and not report.missing


@pytest.mark.parametrize('settings, message', [
    (dict(arch='small'), "checkpoint of CrossViT 'tiny', but the backbone is CrossViT 'small'"),
    (dict(arch='9'), "checkpoint of CrossViT 'tiny', but the backbone is CrossViT '9'"),
    (dict(arch='tiny', fusion='pairwise'), "CrossViT 'tiny', but .* fusion=pairwise"),
])
def test_another_variant_is_refused_by_name(settings, message):
    backbone = CrossViT(**settings)
    before = backbone.embeds[0].cls_token.clone()
    with pytest.raises(CheckpointError, match=message):
        load_official(backbone, official('tiny'))
    with pytest.raises(CheckpointError, match=message):
        backbone.load_state_dict(official('tiny'), strict=False)
    assert backbone.embeds[0].cls_token.equal(before)


@pytest.mark.parametrize('one', FUSIONS)
@pytest.mark.parametrize('other', FUSIONS)
def test_own_weights_of_another_fusion_are_refused(one, other):
    source, target = CrossViT(TINY, fusion=one), CrossViT(TINY, fusion=other)
    if one == other:
        assert not load_official(target, source.state_dict()).missing
    else:
        with pytest.raises(CheckpointError, match='Nothing was loaded'):
            load_official(target, source.state_dict())


def test_another_model_is_refused_by_name():
    crossformer = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    with pytest.raises(CheckpointError, match='not a checkpoint of CrossFormer.*like CrossViT'):
        load_official(CrossFormer(crossformer), official('tiny'))
    with pytest.raises(CheckpointError, match='not a checkpoint of CrossViT.*like CrossFormer'):
        load_official(CrossViT(TINY), {'patch_embed.projs.0.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match='not a checkpoint of CrossViT.*like ViT or DeiT'):
        load_official(CrossViT(TINY), {'blocks.0.attn.qkv.weight': torch.zeros(1)})
