"""CrossViT: other people's outputs, sizes, memory, bad input."""
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from crossvit_models import (
    TINY,
    classifier,
    images,
    logits,
    official,
    plain_cross_attention,
    randomise,
)
from golden import deviation, golden_cases, golden_image, golden_record
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from versions import unfused_attention

from xvit_mm.apis.command_line import config_arguments
from xvit_mm.checkpoints import CROSSVIT_NAMES, CheckpointError, load_official
from xvit_mm.checkpoints.catalogue import official_classifier
from xvit_mm.models import CrossViT
from xvit_mm.models.backbones.crossvit import branch_grids
from xvit_mm.models.layers import FUSIONS, CrossAttention
from xvit_mm.models.necks.branch_pyramid import BranchPyramid
from xvit_mm.utils.config import load_config

# --- other people's outputs --------------------------------------------------------------------


@pytest.mark.parametrize('path', golden_cases('timm_crossvit_*.json'), ids=lambda p: p.stem)
def test_recorded_logits_and_parameters_are_met(path: Path):
    record = golden_record(path)
    arch = record['model'].removeprefix('crossvit_').replace('_240', '').replace('408', '384')
    with torch.device('meta'):
        model = classifier(arch).eval()
    assert sum(p.numel() for p in model.parameters()) == record['params']
    report = load_official(model.to_empty(device='cpu'), official(arch))
    assert set(report.loaded) == set(model.state_dict()) and not report.unexpected
    assert f"CrossViT '{arch}'" in str(report)
    with torch.no_grad():
        assert deviation(logits(model, golden_image(*record['image'])), record['logits']) <= 1e-4


@pytest.mark.parametrize('arch', ['tiny', '9_dagger'])
def test_timm_has_the_same_logits_and_gradients(arch):
    timm = pytest.importorskip('timm')
    theirs = timm.create_model(f'crossvit_{arch}_240', num_classes=7, drop_path_rate=0.1)
    theirs = randomise(theirs.double()).eval()
    ours = classifier(arch, 7).double().eval()
    load_official(ours, theirs.state_dict())
    image, weights = images(240, 240, 2, torch.float64), torch.randn(2, 7, dtype=torch.float64)
    results = [theirs(image), logits(ours, image)]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    for result in results:
        (result * weights).sum().backward()
    expected = CROSSVIT_NAMES.translate({n: p.grad for n, p in theirs.named_parameters()})
    assert not expected.other
    for part, grads in (('backbone', expected.backbone), ('head', expected.head)):
        found = dict(ours[part].named_parameters())
        assert found.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(found[name].grad, grad, rtol=1e-7, atol=1e-9)


def test_timm_has_the_same_drop_path_rates():
    timm = pytest.importorskip('timm')
    theirs = timm.create_model('crossvit_tiny_240', drop_path_rate=0.1)
    for encoder, other in zip(CrossViT('tiny').encoders, theirs.blocks):
        rates = [block.drop_path.drop_prob for blocks in encoder.blocks for block in blocks]
        expected = [getattr(block.drop_path1, 'drop_prob', 0)
                    for blocks in other.blocks for block in blocks]
        assert rates == pytest.approx(expected)
        assert encoder.fusion.drop_path.drop_prob == pytest.approx(
            other.fusion[0].drop_path.drop_prob)


@pytest.mark.parametrize('arch, published', [
    ('tiny', 1.57), ('small', 5.63), ('base', 21.2), ('9', 1.85), ('15', 5.81), ('18', 9.05),
    ('9_dagger', 2.0), ('15_dagger', 6.1), ('18_dagger', 9.5), ('15_dagger_384', 21.4),
    ('18_dagger_384', 32.4)])
def test_multiply_adds_are_the_published_less_the_skipped_projections(arch, published, monkeypatch):
    with torch.device('meta'):
        side = 408 if '384' in arch else 240
        model, image = classifier(arch).eval(), torch.empty(1, 3, side, side)
    counts = []
    for forward in (CrossAttention.forward, plain_cross_attention):
        monkeypatch.setattr(CrossAttention, 'forward', forward)
        # The counter sees attention only where it is not fused.
        with unfused_attention(), FlopCounterMode(display=False) as counter:
            logits(model, image)
        counts.append(counter.get_total_flops() / 2e9)
    ours, plain = counts
    assert plain == pytest.approx(published, rel=0.012)
    assert 0.93 * plain < ours < 0.98 * plain


# --- image sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize('size, branch, small, large', [
    ((224, 224), 'large', (20, 20), (14, 14)),
    ((384, 384), 'large', (34, 34), (24, 24)),
    ((240, 240), 'small', (20, 20), (14, 14)),
    ((408, 408), 'small', (34, 34), (24, 24)),
    ((800, 1344), 'large', (71, 120), (50, 84)),
    ((1, 17), 'large', (1, 3), (1, 2)),
    ((1, 13), 'small', (1, 2), (1, 1)),
])
def test_branch_grids_follow_the_image(size, branch, small, large):
    assert branch_grids(size, branch) == (small, large)


@pytest.mark.parametrize('size, branch, patch_sizes, small, large', [
    ((224, 224), 'large', (8, 16), (28, 28), (14, 14)),
    ((224, 100), 'small', (8, 16), (28, 13), (14, 7)),
    ((64, 64), 'large', (16, 32), (4, 4), (2, 2)),
    ((48, 1), 'small', (16, 16), (3, 1), (3, 1)),
])
def test_grids_of_other_patch_sizes_are_of_one_scale(size, branch, patch_sizes, small, large):
    assert branch_grids(size, branch, patch_sizes) == (small, large)


def test_a_number_on_the_command_line_names_a_variant():
    arguments = config_arguments('').parse_args(['CONFIG', '--cfg-options', 'model.backbone.arch=15'])
    cfg = load_config('crossvit_9_imagenet', arguments.cfg_options)
    with torch.device('meta'):
        assert CrossViT(15).settings == CrossViT('15').settings
        with pytest.raises(ValueError, match="no arch 16; choose from 'tiny'"):
            CrossViT(16)
    assert official_classifier(cfg.model.backbone) == 'official://crossvit_15_224'


@pytest.mark.parametrize('arch, given, taken', [
    ('tiny', dict(out_type='cls_token'), 'small'),
    ('tiny', dict(out_type='cls_token', image_branch='large'), 'large'),
    ('tiny', dict(), 'large'),
])
def test_the_image_goes_to_the_branch_of_the_published_protocol(arch, given, taken):
    """Class tokens: S sees the image as it is, as the released weights were trained. Maps: L."""
    with torch.device('meta'):
        backbone = CrossViT(arch, **given)
    assert backbone.image_branch == taken
    seen = {}
    for name, embed in zip(('small', 'large'), backbone.embeds):
        embed.proj.register_forward_pre_hook(
            lambda module, inputs, name=name: seen.update({name: inputs[0].shape[-1]}))
    side = dict(small=240, large=224)
    backbone(torch.empty(1, 3, side[taken], side[taken], device='meta'))
    assert seen == side


@pytest.mark.parametrize('patch_sizes', [(8, 16), (16, 32), (4, 8)])
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
def test_strides_and_maps_follow_the_patch_sizes(patch_sizes, out_type):
    torch.manual_seed(0)
    backbone = CrossViT(TINY | dict(patch_sizes=patch_sizes), out_type=out_type).eval()
    assert [e.proj.kernel_size[0] for e in backbone.embeds] == list(patch_sizes)
    outputs = backbone(images(70, 50))
    if out_type == 'cls_token':
        assert [x.shape for x in outputs] == [(1, 8), (1, 16)]
        return
    strides = tuple(patch_sizes[1] * factor // 4 for factor in (1, 2, 4, 8))
    assert backbone.out_strides == strides
    assert [tuple(x.shape[2:]) for x in outputs] == [
        (math.ceil(70 / stride), math.ceil(50 / stride)) for stride in strides]


def test_patches_of_other_sizes_are_those_of_the_image():
    """Where both patch sizes divide the image, nothing is resized."""
    torch.manual_seed(0)
    backbone = CrossViT(TINY | dict(patch_sizes=(8, 16)), out_type='cls_token').eval()
    image = images(32, 48)
    for embed, grid, patch in zip(backbone.embeds, ((4, 6), (2, 3)), (8, 16)):
        tokens = embed(image, grid) - embed._positions(grid)
        for row, column in ((0, 0), (1, 2)):
            part = image[..., row * patch:(row + 1) * patch, column * patch:(column + 1) * patch]
            expected = (embed.proj.weight * part).sum((1, 2, 3)) + embed.proj.bias
            torch.testing.assert_close(tokens[0, 1 + row * grid[1] + column], expected)


@pytest.mark.parametrize('fusion', FUSIONS)
def test_repeated_fusion_is_fusion_of_what_the_first_gave(fusion):
    torch.manual_seed(0)
    arch = TINY | dict(cross_attn_depth=3, num_encoders=1)
    repeated = randomise(CrossViT(arch, fusion=fusion, out_type='cls_token').double()).eval()
    encoder = repeated.encoders[0]
    assert len(encoder.more_fusions) == 2
    seen = []
    for module in (encoder.fusion, *encoder.more_fusions):
        module.register_forward_hook(lambda module, inputs, output: seen.append(
            (inputs[0], output)))
    with torch.no_grad():
        outputs = repeated(images(48, 64, dtype=torch.float64))
        for (_, given), (taken, _) in zip(seen, seen[1:]):
            assert all(a.equal(b) for a, b in zip(given, taken))
        for x, tokens in zip(outputs, seen[-1][1]):
            assert x.equal(tokens[:, 0])
    names = {name for name, _ in CrossViT(TINY, fusion=fusion).named_parameters()}
    assert not any('more_fusions' in name for name in names)


def test_weights_of_other_patches_and_fusions_are_refused_by_name():
    for setting, text in ((dict(patch_sizes=(8, 16)), r'patch_sizes=\(8, 16\)'),
                          (dict(cross_attn_depth=2), 'cross_attn_depth=2')):
        source = CrossViT(TINY | setting).state_dict()
        with pytest.raises(CheckpointError, match=text):
            load_official(CrossViT(TINY), source)
        assert not load_official(CrossViT(TINY | setting), source).missing


@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('branch', ['small', 'large'])
def test_class_tokens_come_from_any_image_size(fusion, branch):
    torch.manual_seed(0)
    backbone = CrossViT(TINY, out_type='cls_token', fusion=fusion, image_branch=branch)
    for training in (True, False):
        backbone.train(training)
        for size in ((1, 1), (2, 35), (11, 12), (16, 16), (97, 50), (48, 48)):
            tokens = backbone(images(*size, batch=2))
            assert [x.shape for x in tokens] == [(2, 8), (2, 16)]
            assert all(x.isfinite().all() for x in tokens)


@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
@pytest.mark.parametrize('multi_conv', [False, True])
def test_no_parameter_is_without_gradient(fusion, out_type, multi_conv):
    torch.manual_seed(0)
    backbone = CrossViT(TINY | dict(multi_conv=multi_conv), fusion=fusion, out_type=out_type)
    outputs = backbone.eval()(images(64, 80, 2))
    sum((x * torch.randn_like(x)).sum() for x in outputs).backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]


def test_padding_on_the_right_and_bottom_is_zeros():
    backbone = randomise(CrossViT(TINY)).eval()
    image = images(50, 37)
    with torch.no_grad():
        ours, padded = backbone(image), backbone(F.pad(image, (0, 11, 0, 14)))
    for x, y in zip(ours, padded):
        torch.testing.assert_close(x, y[..., :x.shape[2], :x.shape[3]])


def test_both_branches_contribute_to_every_level():
    backbone = randomise(CrossViT(TINY, fusion='class_token').double()).eval()
    grids = branch_grids((64, 80), 'large')
    tokens = [torch.randn(1, 1 + h * w, c, dtype=torch.float64, requires_grad=True)
              for (h, w), c in zip(grids, TINY['embed_dims'])]
    for x in backbone.pyramid(tokens, grids, (64, 80)):
        for grad in torch.autograd.grad((x * torch.randn_like(x)).sum(), tokens, retain_graph=True):
            assert (grad.abs().sum(dim=-1) > 0).all()


def test_maps_of_the_pyramid_lie_where_the_tokens_lie():
    """Tokens that hold their own place in pixels give maps that hold theirs."""
    height, width = 150, 210
    grids = branch_grids((height, width), 'large')
    pyramid = BranchPyramid((2, 2), (0, 1, 2)).double()
    pyramid.norms = pyramid.readouts = nn.ModuleList([nn.Identity(), nn.Identity()])
    for level in pyramid.levels.values():
        level.projs = nn.ModuleList([nn.Identity(), nn.Identity()])

    def places(rows: int, columns: int, pixels: tuple[float, float]) -> Tensor:
        ys = (torch.arange(rows, dtype=torch.float64) + 0.5) * pixels[0]
        xs = (torch.arange(columns, dtype=torch.float64) + 0.5) * pixels[1]
        return torch.stack(torch.meshgrid(ys, xs, indexing='ij'), dim=-1)

    area = [n * 16 for n in grids[1]]
    tokens = []
    for rows, columns in grids:
        grid = places(rows, columns, (area[0] / rows, area[1] / columns)).flatten(0, 1)
        tokens.append(torch.cat([torch.zeros(1, 2, dtype=torch.float64), grid])[None])
    for x, stride in zip(pyramid(tokens, grids, (height, width)), (4, 8, 16)):
        expected = 2 * places(*x.shape[2:], (stride, stride)).permute(2, 0, 1)
        # Beyond the centre of the first and last token there is nothing to interpolate.
        inner = slice(16 // stride, -16 // stride)
        torch.testing.assert_close(x[0][:, inner, inner], expected[:, inner, inner])


def test_position_embeddings_are_kept_for_the_last_sizes_in_eval_mode(monkeypatch):
    backbone = CrossViT(TINY).eval()
    embed = backbone.embeds[0]
    with torch.no_grad():
        sides = range(16, 256, 16)
        for side in sides:
            backbone(images(side, 16))
        grids, positions = [], embed._positions
        monkeypatch.setattr(embed, '_positions', lambda grid: grids.append(grid) or positions(grid))
        for side in reversed(sides):
            backbone(images(side, 16))
        assert len(grids) == len(sides) - embed.max_entries
        backbone.train().eval()
        backbone(images(16, 16))
        assert len(grids) == len(sides) - embed.max_entries + 1


class _LargestTensor(TorchDispatchMode):
    """Sees every tensor that an operation makes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operations = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.add(str(func))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize('fusion', ['cross', 'all'])
def test_no_matrix_of_all_pairs_exists_at_800_x_1344(fusion):
    arch = TINY | dict(depths=(1, 1), num_heads=1, num_encoders=1)
    backbone = CrossViT(arch, out_indices=(2, 3), fusion=fusion).train()
    image = images(800, 1344)
    with _LargestTensor() as seen:
        sum(x.sum() for x in backbone(image)).backward()
    # Tokens: 8,521 small and 4,201 large. The largest tensor is the resized image.
    assert seen.elements < 4201**2 / 3
    assert any('_scaled_dot_product_flash_attention' in name for name in seen.operations)
    assert any('flash_attention' in name and 'backward' in name for name in seen.operations)


# --- depths, bad input -------------------------------------------------------------------------


def test_layer_depths_count_blocks_of_the_deeper_branch():
    backbone = CrossViT('tiny')
    expected = {
        'embeds.0.cls_token': 0, 'embeds.1.proj.weight': 0,
        'encoders.0.blocks.1.0.norm1.weight': 1, 'encoders.0.blocks.1.3.norm1.weight': 4,
        'encoders.0.blocks.0.0.norm1.weight': 4, 'encoders.0.fusion.attns.0.wq.weight': 4,
        'encoders.2.blocks.1.0.norm1.weight': 9, 'encoders.2.fusion.revert.1.2.bias': 12,
        'pyramid.levels.stride4.projs.0.weight': 13,
    }
    for name, depth in expected.items():
        assert backbone.get_layer_depth(f'backbone.{name}', 'backbone.') == (depth, 14)


@pytest.mark.parametrize('wrong, message', [
    (dict(arch='medium'), "no arch 'medium'; choose from 'tiny', 'small'"),
    (dict(arch=16), "no arch 16; choose from .*'18'"),
    (dict(arch=dict(embed_dims=(8, 16))), r'embed_dims=\(8, 16\): num_heads=6 must divide'),
    (dict(arch=TINY | dict(width=3)), r"unknown entries \['width'\]"),
    (dict(arch=TINY | dict(num_heads=3)), 'num_heads=3 must divide'),
    (dict(arch=TINY | dict(num_heads=(2, 2))), r'num_heads=\(2, 2\): give one whole number'),
    (dict(arch=TINY | dict(depths=(1, 2, 0))), r'depths=\(1, 2, 0\): give 2 whole numbers'),
    (dict(arch=TINY | dict(embed_dims=(6, 16), multi_conv=True)), '4 with multi_conv'),
    (dict(fusion='sum'), "fusion='sum': choose from 'cross', 'all', 'class_token', 'pairwise'"),
    (dict(out_type='tokens'), "out_type='tokens': choose from 'featmap', 'cls_token'"),
    (dict(image_branch='S'), "image_branch='S': choose from 'small', 'large'"),
    (dict(image_branch='small'), "goes with out_type='cls_token'"),
    (dict(arch=TINY | dict(patch_sizes=(16, 12))),
     r'patch_sizes=\(16, 12\): .*small patches first'),
    (dict(arch=TINY | dict(patch_sizes=(4, 16))), r'patch_sizes=\(4, 16\): .* at most twice'),
    (dict(arch=TINY | dict(patch_sizes=(8., 16))), r'patch_sizes=\(8.0, 16\): give 2 whole'),
    (dict(arch=TINY | dict(patch_sizes=16)), 'patch_sizes=16: give 2 whole numbers'),
    (dict(arch=TINY | dict(patch_sizes=(9, 18))), r'patch_sizes=\(9, 18\): .*4 must divide'),
    (dict(arch=TINY | dict(patch_sizes=(8, 16), multi_conv=True)), 'set multi_conv=False'),
    (dict(arch=TINY | dict(cross_attn_depth=0)), 'cross_attn_depth=0: give one whole number'),
    (dict(img_size=0), 'img_size=0'),
    (dict(drop_path_rate=1.0), 'drop_path_rate=1.0'),
    (dict(out_type='cls_token', frozen_stages=4), 'frozen_stages=4.* 3'),
])
def test_bad_arguments_are_refused_with_what_is_allowed(wrong, message):
    with pytest.raises(ValueError, match=message):
        CrossViT(**(dict(arch=TINY) | wrong))
