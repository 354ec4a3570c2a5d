"""What backbones attend to, against literal formulas, and the pictures of it."""
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_models import SMALL
from torch import nn

from xvit_mm.apis import build_model
from xvit_mm.apis.attention_pictures import _query, write_attention_pictures
from xvit_mm.apis.inference import TestPipeline
from xvit_mm.registry import MODELS
from xvit_mm.utils.config import ConfigError
from xvit_mm.visualization.attention import (attention_maps, attention_row, class_token_weights,
                                             receptive_fields)
from xvit_mm.visualization.heat_maps import write_heat_maps


def backbone(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def literal_row(attention: nn.Module, x: torch.Tensor, members, query: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) of one token of a group, given as (row, column) pairs."""
    channels, heads = x.shape[-1], attention.num_heads
    tokens = torch.stack([x[0, row, column] for row, column in members])
    q, k, _ = attention.qkv(tokens).split(channels, dim=1)
    q, k = (t.unflatten(1, (heads, -1)) for t in (q, k))
    logits = torch.einsum('hd,jhd->hj', q[query], k) * (channels // heads)**-0.5
    row, column = group_place(members, query)
    for j in range(len(members)):
        other_row, other_column = group_place(members, j)
        offset = torch.tensor([[row - other_row, column - other_column]]).to(logits)
        logits[:, j] += attention.position_bias.layers(offset)[0]
    return logits.softmax(1)


def group_place(members, index: int) -> tuple[int, int]:
    """Row and column of a member in its group, counted in tokens of the group."""
    rows, columns = (sorted({member[a] for member in members}) for a in range(2))
    return rows.index(members[index][0]), columns.index(members[index][1])


@torch.no_grad()
@pytest.mark.parametrize('kind', ['SDA', 'LDA'])
def test_a_row_of_grouped_attention_is_the_softmax_over_its_group(kind):
    model = backbone('CrossFormer')  # groups of 3 x 3 tokens, interval 4, in the first stage
    stage = model.stages[1]  # groups of 3 x 3, interval 2
    block = stage.blocks[kind == 'LDA']
    calls = {}
    block.attn.register_forward_pre_hook(lambda _, args: calls.update(args=args))
    model(torch.randn(1, 3, 96, 96, dtype=torch.float64))  # 12 x 12 tokens
    tokens, *others = calls['args']
    x = tokens.unflatten(1, (12, 12))
    row, column = 4, 7
    if kind == 'SDA':
        members = [(r, c) for r in range(3, 6) for c in range(6, 9)]
    else:
        # Windows of 6 positions; the others of a group lie 2 apart.
        members = [(r, c) for r in (0, 2, 4) for c in (7, 9, 11)]
    expected = torch.zeros(block.attn.num_heads, 12, 12, dtype=x.dtype)
    weights = literal_row(block.attn, x, members, members.index((row, column)))
    for j, (r, c) in enumerate(members):
        expected[:, r, c] = weights[:, j]
    torch.testing.assert_close(attention_row(block.attn, (x, *others), row, column), expected)


@torch.no_grad()
def test_weights_of_the_class_token_are_those_that_its_output_is_made_with():
    model = backbone('CrossViT')
    attention = model.encoders[0].fusion.attns[0]
    x = torch.randn(2, 10, 48, dtype=torch.float64)
    weights = class_token_weights(attention, x)
    value = attention.wv(x).unflatten(2, (attention.num_heads, -1))
    mixed = torch.einsum('bhn,bnhd->bhd', weights, value).flatten(1)
    torch.testing.assert_close(attention.proj(mixed)[:, None], attention(x))
    torch.testing.assert_close(weights.sum(2), torch.ones(2, attention.num_heads).double())


@torch.no_grad()
def test_scores_of_xfa_lie_at_their_tokens():
    model = backbone('XFormer')
    images = torch.randn(1, 3, 72, 104, dtype=torch.float64)
    maps = attention_maps(model, images, (0.5, 0.5))
    assert [tuple(values.shape) for values in maps.values()] == [(9, 13), (5, 7), (3, 4)]
    # With a convolution that copies the first feature of the keys, the score is that feature.
    transformer = next(m for m in model.modules() if hasattr(m, 'to_tokens'))
    attention = transformer.blocks[-1].attn
    attention.token_conv.weight.zero_()
    attention.token_conv.bias.zero_()
    attention.token_conv.weight[:, 0, 1] = 1.
    calls = {}
    attention.register_forward_pre_hook(lambda _, args: calls.update(args=args))
    score = next(iter(attention_maps(model, images, (0.5, 0.5)).values()))
    tokens, lengths = calls['args']
    key = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))[0, :, 1]  # [T, heads, d]
    expected = (key / key.norm(dim=2, keepdim=True))[:, :, 0].abs().mean(1)
    # Row 3, column 5 is position (1, 1) of a patch: the last of the four sequences.
    index = sum(lengths[:3]) + (3 // 2) * (13 // 2) + 5 // 2
    torch.testing.assert_close(score[3, 5], expected[index])


def test_only_what_can_change_an_output_is_in_its_receptive_field():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding=1))
    model.forward = lambda images: (nn.Sequential.forward(model, images),)
    field, = receptive_fields(model, torch.randn(1, 3, 32, 32), (0.5, 0.5)).values()
    rows, columns = torch.nonzero(field, as_tuple=True)
    # Output (8, 8) sees rows 7 to 9 of the first map, which see rows 13 to 19 of the image.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (13, 19, 13, 19)


# Pictures.


def config(name: str) -> Config:
    model = dict(
        type='EncoderDecoder', backbone=dict(type=f'xvit_mm.{name}', **SMALL[name]),
        decode_head=dict(type='FCNHead', in_channels=16, channels=8, num_classes=2),
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[120] * 3, std=[60] * 3,
                               bgr_to_rgb=True, test_cfg=dict(size_divisor=32)))
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    return Config(dict(default_scope='mmseg', model=model, test_pipeline=pipeline))


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / 'street.png'
    noise = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (100, 70)))
    return path


@pytest.mark.parametrize('name', sorted(SMALL))
def test_every_backbone_gets_its_pictures(name, picture, tmp_path):
    cfg = config(name)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'weights.pth')
    written = write_attention_pictures(
        cfg, tmp_path / 'weights.pth', [picture], tmp_path / 'out', pixel=(99, 0))
    names = [path.name for path in written]
    if name == 'VTResNet':
        assert names == [f'street_vt{i}.png' for i in range(2)] + ['street_receptive_field.png']
    else:
        assert names == ['street_attention.png', 'street_receptive_field.png']
    assert all(cv2.imread(str(path)).std() > 10 for path in written)
    with pytest.raises(ConfigError, match='--pixel 100 0: .*street.png has 100 x 70 pixels'):
        write_attention_pictures(cfg, 'unused.pth', [picture], tmp_path / 'out', pixel=(100, 0))


@pytest.mark.parametrize('transforms, pixel, expected', [
    ([], (30, 20), (30.5 / 100, 20.5 / 70)),
    ([dict(type='mmdet.Resize', scale=(50, 35))], (99, 0), (99.5 / 100, 0.5 / 70)),
    ([dict(type='mmdet.Resize', scale=(200, 140)), dict(type='mmdet.Pad', size=(256, 160))],
     (10, 60), (21 / 256, 121 / 160)),
    ([dict(type='mmpretrain.CenterCrop', crop_size=40)], (30, 20), (0.5 / 40, 5.5 / 40)),
    ([dict(type='mmdet.RandomFlip', prob=1.)], (0, 69), (99.5 / 100, 69.5 / 70)),
])
def test_a_pixel_is_followed_through_the_test_pipeline(transforms, pixel, expected):
    import mmdet.datasets.transforms  # noqa: F401
    import mmpretrain.datasets  # noqa: F401
    cfg = config('XFormer')
    cfg.test_pipeline[1:1] = transforms
    query = _query(pixel, (70, 100), TestPipeline(cfg), Path('street.png'))
    np.testing.assert_allclose(query, expected, atol=0.005)


def test_a_pixel_that_the_test_pipeline_cuts_off_is_refused():
    import mmpretrain.datasets  # noqa: F401
    cfg = config('XFormer')
    cfg.test_pipeline.insert(1, dict(type='mmpretrain.CenterCrop', crop_size=40))
    with pytest.raises(ConfigError, match='--pixel 5 20: .*cuts it off; it keeps x from 30 to 69 '
                                          'and y from 15 to 54'):
        _query((5, 20), (70, 100), TestPipeline(cfg), Path('street.png'))


def test_a_backbone_without_attention_is_refused(picture, tmp_path):
    cfg = config('VTResNet')
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18, base_channels=8)
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'weights.pth')
    with pytest.raises(ConfigError, match='ResNet has no attention to draw.*CrossFormer, CrossViT'):
        write_attention_pictures(cfg, tmp_path / 'weights.pth', [picture], tmp_path)


def test_weights_lie_over_their_place_in_the_image(tmp_path):
    image = np.full((60, 60, 3), 128, np.uint8)
    weights = torch.full((3, 3), torch.nan)
    weights[0, 2] = 1.
    write_heat_maps(tmp_path / 'map.png', image, {'one corner': weights}, columns=2)
    drawn = cv2.imread(str(tmp_path / 'map.png')).astype(int)
    colourful = np.argwhere(drawn.max(2) - drawn.min(2) > 60)
    panel = drawn.shape[1] // 2
    assert len(colourful) > 100
    assert (colourful[:, 1] > panel + panel // 2).all() and \
        (colourful[:, 0] < drawn.shape[0] // 2 + 20).all()
