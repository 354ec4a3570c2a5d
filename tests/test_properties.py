"""What holds for any settings and images that are allowed, on examples that hypothesis chooses."""
import copy
from math import ceil

import pytest
import torch
from small_models import SMALL
from torch import nn

from xvit_mm.models import backbones

pytest.importorskip('hypothesis', reason='pip install hypothesis')
from hypothesis import given
from hypothesis import strategies as st

MODELS = pytest.mark.parametrize('name', SMALL)
PIXELS = 4 * 256 * 256  # of a batch, so that an example takes at most about a second
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def sides(area: int = PIXELS) -> st.SearchStrategy:
    """Height and width, each from 1 to 700, and long thin images too."""
    return st.tuples(st.integers(1, 700), st.integers(1, 700)).filter(
        lambda size: size[0] * size[1] <= area)


def archs(name: str) -> st.SearchStrategy:
    """Settings that change what a small instance of a model consists of."""
    four = st.tuples(*[st.integers(1, 9)] * 4)
    return {
        'CrossFormer': st.fixed_dictionaries(dict(
            group_size=four, interval=four, arch=st.fixed_dictionaries(dict(
                embed_dims=st.sampled_from((32, 40)), depths=st.tuples(*[st.integers(1, 2)] * 4),
                num_heads=st.sampled_from(((1, 2, 4, 8), (2, 2, 2, 2))), cooling=st.booleans())))),
        'CrossViT': st.fixed_dictionaries(dict(
            fusion=st.sampled_from(('cross', 'all', 'class_token', 'pairwise')),
            arch=st.fixed_dictionaries(dict(
                {key: st.just(value) for key, value in SMALL['CrossViT']['arch'].items()},
                multi_conv=st.booleans(), num_encoders=st.integers(1, 3))))),
        'VTResNet': st.fixed_dictionaries(dict(
            # With 8, nn.Conv2d(8, 16, 1, 2) of torch 2.12 writes beyond its memory in the backward
            # pass on a CPU, channels last, at odd sizes.
            base_channels=st.just(16), token_channels=st.just(64),
            tokenizer=st.sampled_from(('filter', 'clustering', 'pooling')),
            num_tokens=st.sampled_from((1, 4, 9)), num_heads=st.sampled_from((1, 2)),
            num_modules=st.integers(1, 3), pool_last=st.booleans())),
        'XFormer': st.fixed_dictionaries(dict(
            attn_mode=st.sampled_from(('vector', 'map')), arch=st.fixed_dictionaries(dict(
                {key: st.just(value) for key, value in SMALL['XFormer']['arch'].items()
                 if key not in ('mv3_depths', 'kernel_size')},
                mv3_depths=st.tuples(*[st.integers(1, 2)] * 4),
                kernel_size=st.sampled_from((3, 5)))))),
    }[name]


def outputs() -> st.SearchStrategy:
    return st.sets(st.integers(0, 3), min_size=1).map(lambda chosen: tuple(sorted(chosen)))


def build(name: str, settings: dict) -> backbones.Backbone:
    torch.manual_seed(0)
    backbone = getattr(backbones, name)(**{**SMALL[name], **settings})
    backbone.init_weights()
    return backbone


def images(batch: int, size: tuple[int, int], seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def assert_announced(maps, backbone, batch: int, size: tuple[int, int]) -> None:
    assert isinstance(maps, tuple) and len(maps) == len(backbone.out_indices)
    for x, channels, stride in zip(
            maps, backbone.out_channels, backbone.out_strides, strict=True):
        assert x.shape == (batch, channels, *(ceil(side / stride) for side in size))
        assert x.isfinite().all()


@MODELS
@given(data=st.data())
def test_maps_and_gradients_are_as_announced(name, data):
    settings = data.draw(archs(name)) | dict(
        out_indices=data.draw(outputs()), with_cp=data.draw(st.booleans()))
    stages = 4 if name == 'CrossViT' else settings['out_indices'][-1] + 1
    settings['frozen_stages'] = data.draw(st.integers(-1, min(stages, 2)))
    batch = data.draw(st.integers(0, 4))
    size = data.draw(sides(PIXELS // max(batch, 1)))
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16)))
    backbone = build(name, settings).to(dtype)
    # BatchNorm needs more than one value per channel to train.
    trains = batch * ceil(size[0] / 32) * ceil(size[1] / 32) > 1
    backbone.train(trains and data.draw(st.booleans()))
    inputs = images(batch, size).to(dtype, memory_format=data.draw(st.sampled_from(LAYOUTS)))
    maps = backbone(inputs)
    assert_announced(maps, backbone, batch, size)
    assert all(x.dtype == dtype for x in maps)
    frozen = {id(p) for part in backbone.frozen_parts(settings['frozen_stages'])
              for p in part.parameters()} if settings['frozen_stages'] >= 0 else set()
    assert frozen == {id(p) for p in backbone.parameters() if not p.requires_grad}
    if batch and any(x.requires_grad for x in maps):
        sum(x.float().square().mean() for x in maps).backward()
        for parameter in backbone.parameters():
            assert (parameter.grad is None) == (id(parameter) in frozen)
            assert parameter.grad is None or parameter.grad.isfinite().all()


@MODELS
@given(data=st.data())
def test_an_image_is_seen_alike_after_any_others_and_in_any_batch(name, data):
    backbone = build(name, data.draw(archs(name)) | dict(out_indices=data.draw(outputs()))).eval()
    # Statistics other than those of a new BatchNorm, which hides differences.
    for norm in backbone.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(std=0.1)
    fresh = copy.deepcopy(backbone)
    others = data.draw(st.lists(sides(PIXELS // 4), max_size=3))
    size, batch = data.draw(sides(PIXELS // 4)), data.draw(st.integers(1, 4))
    layout = data.draw(st.sampled_from(LAYOUTS))
    together = images(batch, size)
    with torch.no_grad():
        for other in others:
            backbone(images(1, other, seed=2))
        maps = backbone(together.contiguous(memory_format=layout))
        assert_announced(maps, backbone, batch, size)
        # On a size that it sees first, and without company.
        for i in range(batch):
            for x, alone in zip(maps, fresh(together[i:i + 1])):
                torch.testing.assert_close(x[i:i + 1], alone, rtol=1e-3, atol=1e-4)
