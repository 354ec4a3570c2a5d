"""From the name of released weights to a model with them, through every way in."""
import re
from pathlib import Path

import pytest
import torch
from golden import FOLDER, golden_record, golden_weights
from mmengine.runner import load_checkpoint
from tool_runs import run_tool
from toy_data import make_toy_data

from xvit_mm.apis import build_model
from xvit_mm.apis.inference import load_weights
from xvit_mm.apis.published import compare_with_paper
from xvit_mm.checkpoints import CROSSFORMER_NAMES, CheckpointError, load_official
from xvit_mm.checkpoints.whole_model import load_whole_model
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import load_config


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


@pytest.fixture
def classifier(cache) -> dict[str, torch.Tensor]:
    """An official file of CrossFormer-T with random weights, already in the cache."""
    weights = golden_weights(golden_record(FOLDER / 'crossformer_t_cls.json')['keys'])
    cache.mkdir(parents=True)
    torch.save({'model': weights}, cache / 'crossformer_t.pth')
    return weights


def test_init_cfg_load_official_and_mmengine_take_a_name(classifier):
    expected = classifier['patch_embed.norm.weight']
    address = 'official://crossformer_t'
    settings = dict(type='xvit_mm.CrossFormer', arch='t')
    backbone = MODELS.build(
        dict(settings, init_cfg=dict(type='Pretrained', checkpoint=address)))
    backbone.init_weights()
    assert torch.equal(backbone.state_dict()['stages.0.post_norm.weight'], expected)
    for load in load_official, load_checkpoint:
        backbone = MODELS.build(settings)
        load(backbone, address)
        assert torch.equal(backbone.state_dict()['stages.0.post_norm.weight'], expected)


@pytest.fixture(scope='module')
def detector_weights() -> dict[str, torch.Tensor]:
    """Random weights of a whole RetinaNet with CrossFormer-S in the names of the authors' file."""
    return authors_weights('retinanet_crossformer_s_coco')


def authors_weights(config: str) -> dict[str, torch.Tensor]:
    """Random weights of a whole model with CrossFormer-S in the names of the authors' files."""
    torch.manual_seed(0)
    model = build_model(load_config(config))
    ours = {f'backbone.{to_ours}': f'backbone.{name}' for name in official_names('crossformer_s')
            for to_ours in CROSSFORMER_NAMES.translate({name: None}).backbone}
    return {ours.get(name, name): tensor for name, tensor in model.state_dict().items()}


def official_names(arch: str) -> list[str]:
    return [name for name, _ in golden_record(FOLDER / f'{arch}_cls.json')['keys']]


def test_a_detector_of_mmdet_2_must_cover_neck_and_head(detector_weights, tmp_path):
    """mmdet 2.x has the names of mmdet 3.x; of the backbone they are the authors' own."""
    assert 'backbone.layers.0.blocks.0.attn.pos.pos_proj.weight' in detector_weights
    assert {'neck.lateral_convs.0.conv.weight', 'bbox_head.retina_cls.bias'} <= set(
        detector_weights)
    model = build_model(load_config('retinanet_crossformer_s_coco'))
    meta = dict(mmdet_version='2.17.0', CLASSES=('person',))
    load_whole_model(model, dict(meta=meta, state_dict=detector_weights), 'theirs.pth')
    own = model.state_dict()
    assert torch.equal(own['bbox_head.retina_cls.weight'],
                       detector_weights['bbox_head.retina_cls.weight'])
    assert torch.equal(own['backbone.stages.0.post_norm.weight'],
                       detector_weights['backbone.patch_embed.norm.weight'])
    for change, message in [
            ({'bbox_head.retina_cls.bias': None}, 'bbox_head.retina_cls.bias of the model not in'),
            ({'bbox_head.retina_cls.bias': torch.zeros(9)}, 'retina_cls.bias .*of another shape'),
            ({'mask_head.weight': torch.zeros(1)}, 'mask_head.weight of the file not in the model'),
    ]:
        changed = {n: t for n, t in {**detector_weights, **change}.items() if t is not None}
        with pytest.raises(CheckpointError, match=message):
            load_whole_model(model, dict(state_dict=changed), 'theirs.pth')


@pytest.mark.training
@pytest.mark.parametrize('config, parts', [
    ('retinanet_crossformer_s_coco', ['neck', 'bbox_head']),
    ('mask_rcnn_crossformer_s_coco', ['neck', 'rpn_head', 'roi_head.bbox_head',
                                      'roi_head.mask_head']),
    ('fpn_crossformer_s_ade20k', ['neck', 'decode_head']),
    ('upernet_crossformer_s_ade20k', ['decode_head.psp_modules', 'auxiliary_head']),
])
def test_each_kind_of_model_by_name_is_loaded_completely(config, parts, cache):
    theirs = authors_weights(config)
    cache.mkdir(parents=True)
    torch.save(dict(state_dict=theirs), cache / f'{config}.pth')
    torch.manual_seed(1)
    cfg = load_config(config)
    model = build_model(cfg)
    load_weights(model, 'official', cfg)
    own = model.state_dict()
    assert len(own) == len(theirs)
    for part in parts:
        names = [name for name in theirs if name.startswith(part)]
        assert names and all(torch.equal(own[name], theirs[name]) for name in names)
    assert torch.equal(own['backbone.stages.3.blocks.1.mlp.fc2.weight'],
                       theirs['backbone.layers.3.blocks.1.mlp.fc2.weight'])


@pytest.mark.parametrize('metrics, name, tta, line', [
    ({'coco/bbox_mAP': 0.4441}, 'retinanet_crossformer_s_coco', False, 'box AP 44.4 (paper 44.4)'),
    ({'coco/bbox_mAP': 0.45, 'coco/segm_mAP': 0.4}, 'mask_rcnn_crossformer_s_coco', False,
     'box AP 45.0 (paper 45.4), mask AP 40.0 (paper 41.4)'),
    ({'mIoU': 48.31}, 'upernet_crossformer_s_ade20k', True, 'mIoU 48.3 (paper 48.4)'),
    ({'accuracy/top1': 82.5}, 'crossformer_s', False, 'top-1 82.5 (paper 82.5)'),
])
def test_results_are_set_beside_those_of_the_paper(metrics, name, tta, line):
    assert compare_with_paper(metrics, f'official://{name}', tta=tta) == line
    assert compare_with_paper(metrics, 'mine.pth', tta=tta) == ''


@pytest.mark.training
@pytest.mark.parametrize('config, options, line', [
    ('retinanet_crossformer_s_coco', [], r'box AP -?\d+\.\d \(paper 44\.4\)'),
    pytest.param(
        # Random weights give no class a score for which mmdet would report a result.
        'mask_rcnn_crossformer_s_coco', ['model.test_cfg.rcnn.score_thr=0.'],
        r'box AP -?\d+\.\d \(paper 45\.4\), mask AP -?\d+\.\d \(paper 41\.4\)',
        marks=pytest.mark.slow),
    ('fpn_crossformer_s_ade20k', [], r'mIoU \d+\.\d \(paper 46\.4\)'),
    pytest.param('upernet_crossformer_s_ade20k', [], r'mIoU \d+\.\d \(paper 47\.6\)',
                 marks=pytest.mark.slow),
])
def test_the_last_line_of_a_test_compares_with_the_paper(
        config, options, line, cache, tmp_path):
    data = tmp_path / 'data'
    data.mkdir()
    make_toy_data(load_config(config, data_root=data), data)
    cache.mkdir(parents=True)
    torch.save(dict(state_dict=authors_weights(config)), cache / f'{config}.pth')
    done = run_tool(
        'test', config, 'official', '--data-root', data, '--work-dir', tmp_path / 'run',
        '--cfg-options', 'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        'test_dataloader.dataset.pipeline.1.scale=(160,128)', *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(line, done.stdout.splitlines()[-1]), done.stdout[-1000:]
