"""VT-ResNet: published sizes, options, the ResNet that it holds, and where its tokens look."""
import pickle
from pathlib import Path

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from xvit_mm.models.backbones import VTResNet, vt_resnet
from xvit_mm.models.heads import VTClsHead
from xvit_mm.models.layers import FilterTokenizer, RecurrentTokenizer
from xvit_mm.registry import MODELS
from xvit_mm.utils.complexity import count_macs
from xvit_mm.utils.config import load_config

CONFIGS = Path(__file__).parents[1] / 'configs'
SMALL = dict(base_channels=8, token_channels=32, num_tokens=4)


# Published sizes.


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def classifier(depth: int, **settings) -> nn.Module:
    settings = dict(out_indices=(3,), out_type='tokens', token_norm=False) | settings
    return nn.Sequential(VTResNet(depth, **settings), VTClsHead(1000, 1024)).eval()


NONE, GRAPH = dict(interaction='none'), dict(interaction='graph')
ONCE, NO_PROJECTOR = dict(recurrent=False), dict(with_projector=False)
POOL, CLUSTER = dict(tokenizer='pooling'), dict(tokenizer='clustering')
# Depth, setting, our parameters, our multiply-adds in millions, the paper's of both (Tables 2-8).
SIZES = [
    (18, {}, 11_643_432, 1579, 11.6, 1579),
    (18, NONE, 8_497_704, 1528, 8.5, 1528),
    (18, GRAPH, 8_498_216, 1528, 8.5, 1528),
    (18, ONCE, 11_094_568, 1564, 11.1, 1564),
    (18, POOL, 11_033_128, 1550, 11.0, 1550),
    (18, NO_PROJECTOR, 9_333_288, 1497, 9.3, 1497),
    (18, dict(num_tokens=32), 11_647_528, 1711, 11.6, 1711),
    (18, dict(num_tokens=64), 11_655_720, 1980, 11.6, 1979),
    (18, dict(value_conv=False), 11_594_280, 1569, 11.7, 1569),
    (34, {}, 21_847_848, 3299, 21.8, 3299),
    (34, NONE, 17_129_256, 3222, 17.1, 3222),
    (34, GRAPH, 17_130_024, 3223, 17.1, 3223),
    (34, ONCE, 20_750_120, 3269, 20.7, None),  # the paper's 3369 must be a misprint
    (34, POOL, 20_647_720, 3245, 20.6, 3246),
    # We count three steps of k-means, 4.8 M. Paper: 1580, and 3230, presumably a misprint of 3300.
    (18, CLUSTER, 11_639_336, 1584, 11.6, None),
    (34, CLUSTER, 21_843_752, 3304, 21.8, None),
    (34, NO_PROJECTOR, 17_342_248, 3158, 17.3, 3158),
    (34, dict(num_tokens=32), 21_851_944, 3514, 21.8, 3514),
    (34, dict(num_tokens=64), 21_860_136, 3951, 21.8, 3951),
    (50, {}, 22_102_056, 3595, None, None),  # the paper's 21.4 M and 3412 M have another structure
    (101, {}, 41_094_184, 7307, None, None),
]


@pytest.mark.parametrize('depth, setting, parameters, macs, paper_parameters, paper_macs', SIZES)
def test_sizes_are_those_of_the_papers_tables(
        depth, setting, parameters, macs, paper_parameters, paper_macs):
    # torch 2.1 clusters no meta tensors.
    with torch.device('cpu' if setting is CLUSTER else 'meta'):
        model = classifier(depth, **setting)
    count, multiply_adds = num_parameters(model), count_macs(model, 224) / 1e6
    assert count == parameters
    assert abs(multiply_adds - macs) <= 0.7
    if paper_parameters:
        assert abs(count / 1e6 - paper_parameters) <= 0.11
    if paper_macs:
        assert abs(multiply_adds - paper_macs) <= 1


@pytest.mark.parametrize('depth, with_norms, for_maps, macs', [
    (18, 11_667_496, 12_724_776, 1605), (34, 21_886_248, 22_929_192, 3325),
    (50, 22_143_016, 23_216_168, 3631), (101, 41_135_144, 42_208_296, 7343)])
def test_norms_and_the_last_projector_add_what_they_should(depth, with_norms, for_maps, macs):
    head = 1024 * 1000 + 1000
    with torch.device('meta'):
        normed, dense = classifier(depth, token_norm=True), VTResNet(depth, token_norm=False)
    assert num_parameters(normed) == with_norms
    assert num_parameters(dense) + head == for_maps
    assert abs((count_macs(dense, 224) + head) / 1e6 - macs) <= 0.7


# The backbone; what all backbones promise is in test_backbone_contract.py.


def small(**settings) -> VTResNet:
    torch.manual_seed(0)
    return VTResNet(**SMALL | dict(zero_init_residual=False) | settings)


OPTIONS = [
    dict(tokenizer='pooling'), dict(tokenizer='clustering'), dict(recurrent=False),
    dict(tokenizer='pooling', recurrent=True), GRAPH, NONE, dict(num_modules=1),
    dict(num_modules=4), dict(num_heads=4), dict(value_conv=False), dict(token_norm=False),
    dict(scale_logits=False, query_gain=1.), dict(num_tokens=1), dict(num_tokens=7),
    dict(pool_last=False), dict(with_projector=False, out_type='tokens'),
    dict(norm_cfg=dict(type='GN', num_groups=2)),
    dict(resnet=dict(deep_stem=True, avg_down=True)), dict(token_channels=64), dict(depth=50),
]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_every_option_trains_all_its_parameters_at_any_size(options):
    backbone = small(**options).train()
    for size in ((33, 70), (64, 64), (2, 3)):
        outputs = backbone(torch.randn(2, 3, *size))
        assert [x.shape[1] for x in outputs[:3]] == list(backbone.out_channels[:3])
    outputs = backbone(torch.randn(2, 3, 64, 96))
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or options.get('num_tokens') == 1, name


def test_last_map_is_pooled_to_stride_32_or_left_at_16():
    pooled, native = small().eval(), small(pool_last=False).eval()
    assert pooled.out_strides == (4, 8, 16, 32) and native.out_strides == (4, 8, 16, 16)
    native.load_state_dict(pooled.state_dict())
    image = torch.randn(1, 3, 97, 50)
    with torch.no_grad():
        small_map, large_map = pooled(image)[-1], native(image)[-1]
    assert large_map.shape[2:] == (7, 4) and small_map.shape[2:] == (4, 2)
    assert torch.equal(small_map[0, :, 3, 1], large_map[0, :, 6:, 2:].amax((1, 2)))


@pytest.mark.parametrize('size', [(64, 64), (33, 130)])
def test_tokens_come_out_as_batch_tokens_channels(size):
    backbone = small(out_indices=(1, 3), out_type='tokens').eval()
    fmap, tokens = backbone(torch.randn(2, 3, *size))
    assert fmap.ndim == 4 and tokens.shape == (2, 4, 32) and backbone.out_channels == (16, 32)
    assert backbone.vt[-1].projector is None and small().vt[-1].projector is not None


@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_a_depth_stands_for_an_arch_and_takes_its_place(depth, log):
    def shapes(*args, **settings):
        with torch.device('meta'):
            backbone = VTResNet(*args, **settings)
        return {name: tensor.shape for name, tensor in backbone.state_dict().items()
                if not name.endswith('_extra_state')}

    expected = shapes(f'r{depth}')
    assert shapes(depth=depth) == shapes(depth) == shapes(arch=str(depth)) == expected
    assert 'takes the place' not in log.getvalue()
    other = 'r34' if depth == 50 else 'r50'
    assert shapes(other, depth=depth) == expected
    assert f"depth={depth} takes the place of arch='{other}'" in log.getvalue()


def test_an_arch_of_ones_own_has_the_blocks_and_modules_that_it_says():
    backbone = small(arch=dict(depths=(1, 2, 1), num_modules=1, bottleneck=True))
    layers = [getattr(backbone.resnet, f'layer{i}') for i in (1, 2, 3)]
    assert [len(layer) for layer in layers] == [1, 2, 1] and len(backbone.vt) == 1
    assert all(hasattr(block, 'conv3') for layer in layers for block in layer)
    assert [x.shape[1] for x in backbone(torch.randn(2, 3, 64, 64))] == [32, 64, 128, 128]
    again = pickle.loads(pickle.dumps(backbone))
    assert again.state_dict().keys() == backbone.state_dict().keys()
    assert len(small(arch=dict(num_modules=1), num_modules=3).vt) == 3


def test_only_the_first_module_is_not_recurrent():
    kinds = [type(module.tokenizer) for module in small(depth=34).vt]
    assert kinds == [FilterTokenizer, RecurrentTokenizer, RecurrentTokenizer]
    once = small(with_projector=False, out_type='tokens')
    assert [module.tokenizer is None for module in once.vt] == [False, True]


def test_each_scale_and_the_gain_reach_their_layers_and_no_others():
    def scales(**settings):
        first, later = small(**settings).vt
        layers = dict(
            scale_filters=first.tokenizer, scale_recurrent=later.tokenizer,
            scale_transformer=first.transformer, scale_projector=first.projector)
        gains = [m.query.norm.weight[0].item() for m in layers.values() if hasattr(m, 'query')]
        return {name: layer.scale < 1 for name, layer in layers.items()}, gains
    default, gains = scales()
    assert gains == pytest.approx([0.1] * 3)
    for name, value in default.items():
        assert scales(**{name: not value}) == (default | {name: not value}, gains)
    assert not any(scales(scale_logits=False)[0].values())
    assert all(scales(scale_logits=True)[0].values())
    assert scales(query_gain=0.5) == (default, [0.5] * 3)


@pytest.mark.parametrize('tokenizer, scaled', [('filter', True), ('clustering', False)])
def test_by_default_only_filters_that_learn_are_scaled(tokenizer, scaled):
    assert small(tokenizer=tokenizer).settings.scale_filters is scaled
    for value in True, False:
        assert small(tokenizer=tokenizer, scale_filters=value).settings.scale_filters is value
        assert small(tokenizer=tokenizer, scale_logits=value).settings.scale_filters is value


@pytest.mark.parametrize('resnet', [{}, dict(type='mmpretrain.ResNet_CIFAR')], ids=str)
def test_drop_path_rises_from_the_first_block_of_the_resnet_to_the_last_module(resnet):
    backbone = small(depth=34, drop_path_rate=0.15, resnet=resnet)
    paths = [block.drop_path for layer in backbone._layers() for block in layer]
    paths += [module.transformer.drop_path for module in backbone.vt]
    assert [path.drop_prob for path in paths] == pytest.approx([0.01 * i for i in range(16)])
    assert [m.projector.drop_path.drop_prob for m in backbone.vt] == pytest.approx(
        [0.13, 0.14, 0.15])
    assert type(backbone.resnet).__module__.startswith('mmpretrain')


def test_drop_path_drops_the_branches_of_the_resnet():
    """With a rate of nearly 1 a stage is its shortcuts."""
    backbone = small(drop_path_rate=0.99, out_indices=(0,)).train()
    layer, x = backbone.resnet.layer1, torch.randn(8, 8, 4, 4).relu()
    for block in layer:
        block.drop_path.drop_prob = 1 - 1e-6
    assert torch.equal(layer(x), x)


def test_a_resnet_without_drop_path_is_refused_where_a_rate_is_set(monkeypatch):
    with pytest.raises(ValueError, match='mmdet.ResNet have no drop path'):
        small(drop_path_rate=0.1, resnet=dict(type='mmdet.ResNet'))
    monkeypatch.setattr(vt_resnet, 'find_spec', lambda name: name == 'mmdet')
    with pytest.raises(ImportError, match='needs the ResNet of mmpretrain'):
        small(drop_path_rate=0.1)


def test_forward_hooks_on_every_stage_see_its_output():
    backbone, seen = small().eval(), {}
    for name in ('resnet.layer1', 'resnet.layer2', 'resnet.layer3', 'vt'):
        backbone.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output}))
    *maps, last = backbone(torch.randn(1, 3, 64, 96))
    assert list(seen) == ['resnet.layer1', 'resnet.layer2', 'resnet.layer3', 'vt']
    for x, output in zip(maps, seen.values()):
        assert torch.equal(x, output)
    fmap, tokens = seen['vt']
    assert torch.equal(torch.nn.functional.max_pool2d(fmap, 2, ceil_mode=True), last)
    assert tokens.shape == (1, 32, 4)


def test_residual_branches_can_start_at_zero():
    backbone = small(depth=50, zero_init_residual=True, token_channels=64, pool_last=False)
    backbone.init_weights()
    *_, before, after = backbone.eval()(torch.randn(1, 3, 64, 64))
    assert torch.equal(before, after)
    assert not backbone.resnet.layer1[0].norm3.weight.any()


def test_a_resnet_for_small_images_keeps_the_resolution():
    backbone = small(resnet=dict(type='mmpretrain.ResNet_CIFAR')).eval()
    assert backbone.out_strides == (1, 2, 4, 8)
    assert [x.shape[2] for x in backbone(torch.randn(1, 3, 32, 32))] == [32, 16, 8, 4]


def test_mmdet_mmpretrain_and_mmseg_give_the_same_backbone():
    image, outputs, states = torch.randn(1, 3, 64, 64), [], []
    for package in ('mmdet', 'mmpretrain', 'mmseg'):
        backbone = small(resnet=dict(type=f'{package}.ResNet')).eval()
        backbone.load_state_dict(states[0] if states else backbone.state_dict())
        states.append(backbone.state_dict())
        outputs.append(backbone(image)[-1])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize('installed, taken', [
    (('mmseg', 'mmpretrain', 'mmdet'), 'mmdet'), (('mmseg', 'mmpretrain'), 'mmpretrain'),
    (('mmseg',), 'mmseg')])
def test_the_resnet_is_that_of_the_first_package_installed_and_the_log_says_so(
        monkeypatch, log, installed, taken):
    """Whatever was imported before."""
    import mmpretrain.models  # noqa: F401
    monkeypatch.setattr(vt_resnet, 'find_spec', lambda name: name in installed)
    backbone = small()
    assert type(backbone.resnet).__module__.startswith(f'{taken}.models')
    assert f'convolutional part from {taken}.ResNet' in log.getvalue()


def test_without_a_package_that_has_a_resnet_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(vt_resnet, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='mmdet, mmpretrain, mmseg.*pip install'):
        small()


@pytest.mark.parametrize('wrong, message', [
    (dict(depth=152), 'depth=152.*18, 34, 50, 101'),
    (dict(arch='r152'), "no arch 'r152'; choose from 'r18', 'r34', 'r50', 'r101', or give a dict"),
    (dict(arch=dict(blocks=(1, 1, 1))), r"unknown entries \['blocks'\]; known are \['bottleneck'"),
    (dict(arch=dict(depths=(1, 1))), r'depths=\(1, 1\): give 3 whole numbers'),
    (dict(arch=dict(num_modules=0)), 'num_modules=0: give one whole number'),
    (dict(arch=dict(bottleneck='yes')), "bottleneck='yes': choose from"),
    (dict(resnet=dict(type='mmdet.ResNeXt')), "type='ResNeXt'.*has no basic blocks"),
    (dict(resnet=dict(type='mmdet.NoSuchNet')), 'no model of this name is registered'),
    (dict(tokenizer='recurrent'), "tokenizer='recurrent'.*'filter', 'pooling', 'clustering'"),
    (dict(interaction='convolution'), "interaction='convolution'.*'graph'"),
    (dict(out_type='cls_token'), "out_type='cls_token'.*'featmap', 'tokens'"),
    (dict(out_type='tokens', out_indices=(0, 1)), 'out_indices must contain 3'),
    (dict(with_projector=False), 'with_projector=False gives tokens only'),
    (dict(num_tokens=0), 'num_tokens=0: give one whole number from 1'),
    (dict(token_channels=30), 'token_channels=30.*multiple of 4'),
    (dict(num_heads=3, token_channels=24), 'num_heads=3.*divide the 64 channels'),
    (dict(drop_path_rate=1.), r'drop_path_rate=1.0.*\[0, 1\)'),
    (dict(resnet=dict(base_channels=4)), 'base_channels cannot be set there'),
])
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        small(**wrong)


def test_token_attention_is_a_distribution_over_the_pixels_of_stride_16():
    backbone = small(depth=34).eval()
    attentions = backbone.token_attention(torch.randn(2, 3, 97, 50))
    assert [x.shape for x in attentions] == [(2, 4, 7, 4)] * 3
    for attention in attentions:
        torch.testing.assert_close(attention.sum((2, 3)), torch.ones(2, 4))
        assert attention.min() >= 0


def test_token_attention_is_what_the_tokens_were_made_with():
    backbone = small(out_indices=(2, 3), value_conv=False, token_norm=False).eval()
    image = torch.randn(1, 3, 64, 96)
    seen = []
    backbone.vt[0].tokenizer.project.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        fmap = backbone(image)[0]
    attention = backbone.token_attention(image)[0]
    torch.testing.assert_close(seen[0], torch.einsum('bchw,blhw->bcl', fmap, attention))


def test_pooled_tokens_have_no_attention_to_show():
    with pytest.raises(ValueError, match='pooling tokenizer has no attention'):
        small(tokenizer='pooling').token_attention(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match='builds no VT modules'):
        small(out_indices=(0,)).token_attention(torch.randn(1, 3, 64, 64))


# Configs.


@pytest.mark.parametrize('name', ['retinanet_vt_r50_coco', 'mask_rcnn_vt_r50_coco'])
def test_detectors_with_a_resnets_recipe_freeze_the_first_stage_and_all_statistics(name):
    backbone = MODELS.build(load_config(CONFIGS / f'{name}.py').model.backbone).train()
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(b, before[n]) for n, b in backbone.named_buffers())
    frozen = {n.split('.')[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1'}


@pytest.mark.parametrize('depth', [18, 34, 50, 101])
def test_advanced_recipe_drops_paths_through_the_whole_network(depth):
    cfg = load_config(CONFIGS / f'vt_r{depth}_advanced_imagenet.py').model.backbone
    backbone = MODELS.build(cfg)
    rates = [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]
    assert cfg.arch == f'r{depth}' and rates[0] == 0 and rates[-1] == pytest.approx(0.1)
    assert all(rates[1:]) and rates == sorted(rates)
