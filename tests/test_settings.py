"""Settings of the wrong kind or size are refused at construction, with what is allowed."""
import numpy as np
import pytest
import torch
from small_models import SMALL

from xvit_mm.models import backbones
from xvit_mm.models.settings import check_numbers

NAN, HUGE = float('nan'), 10 ** 9
ARCH = dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
VIT = dict(embed_dims=(32, 48), depths=(1, 2), num_heads=4)

COMMON = [
    (dict(in_channels=-1), 'in_channels=-1: give one whole number from 1 to 65536'),
    (dict(in_channels=0), 'in_channels=0'),
    (dict(in_channels='3'), "in_channels='3'"),
    (dict(in_channels=True), 'in_channels=True'),
    (dict(in_channels=(3,)), r'in_channels=\(3,\)'),
    (dict(in_channels=3.), r'in_channels=3.0: give one whole number'),
    (dict(drop_path_rate='0.1'), r"drop_path_rate='0.1': must be in \[0, 1\)"),
    (dict(drop_path_rate=NAN), 'drop_path_rate=nan'),
    (dict(drop_path_rate=1.), 'drop_path_rate=1.0'),
    (dict(frozen_stages='1'), "frozen_stages='1': give one whole number"),
    (dict(frozen_stages=0.5), 'frozen_stages=0.5'),
    (dict(frozen_stages=-2), 'frozen_stages=-2'),
    (dict(out_indices='0'), "out_indices='0'"),
    (dict(out_indices=(0, '1')), 'out_indices'),
    (dict(out_indices=(0.5,)), 'out_indices'),
    (dict(out_indices=None), 'out_indices=None'),
]
WRONG = {
    'CrossFormer': [
        (dict(arch=['s']), r"CrossFormer has no arch \['s'\]; choose from 't'"),
        (dict(arch=None), 'has no arch None'),
        (dict(group_size=7), 'group_size=7: give 4 whole numbers from 1 to 1024'),
        (dict(group_size='7777'), "group_size='7777'"),
        (dict(group_size=(7, 7, 7, '7')), 'group_size='),
        (dict(group_size=(7, 7, 7, 7.)), 'group_size='),
        (dict(interval=(HUGE,) * 4), r'interval=\(1000000000, .*from 1 to 1024'),
        (dict(interval=(1, 1)), 'give 4 whole numbers'),
        (dict(arch=dict(ARCH, depths=(-1, 1, 1, 1))), r'depths=\(-1, 1, 1, 1\): give one or more'),
        (dict(arch=dict(ARCH, depths=(HUGE, 1, 1, 1))), 'depths=.*from 1 to 1024'),
        (dict(arch=dict(ARCH, depths=4)), 'depths=4: give one or more whole numbers'),
        (dict(arch=dict(ARCH, depths=())), r'depths=\(\)'),
        (dict(arch=dict(ARCH, depths='1111')), "depths='1111'"),
        (dict(arch=dict(ARCH, num_heads=2)), 'num_heads=2: give 4 whole numbers'),
        (dict(arch=dict(ARCH, num_heads=(0, 1, 1, 1))), 'num_heads='),
        (dict(arch=dict(ARCH, embed_dims='64')), "embed_dims='64': give one whole number"),
        (dict(arch=dict(ARCH, embed_dims=64.)), 'embed_dims=64.0'),
        (dict(arch=dict(ARCH, embed_dims=16)), 'embed_dims=16'),
    ],
    'CrossViT': [
        (dict(arch=dict(VIT, depths=(-1, 1))), r'depths=\(-1, 1\): give 2 whole numbers'),
        (dict(arch=dict(VIT, depths=(HUGE, 1))), 'depths='),
        (dict(arch=dict(VIT, embed_dims=(32., 48))), r'embed_dims=\(32.0, 48\)'),
        (dict(arch=dict(VIT, embed_dims=32)), 'embed_dims=32: give 2 whole numbers'),
        (dict(arch=dict(VIT, mlp_ratio='4')), "mlp_ratio='4': give one number from 0.1"),
        (dict(arch=dict(VIT, mlp_ratio=NAN)), 'mlp_ratio=nan'),
        (dict(arch=dict(VIT, num_encoders=HUGE)), 'num_encoders=1000000000'),
        (dict(img_size='224'), "img_size='224'"),
        (dict(img_size=HUGE), 'img_size=1000000000: give one whole number from 1 to 16384'),
        (dict(arch=dict(VIT, patch_sizes='12')), "patch_sizes='12'"),
    ],
    'VTResNet': [
        (dict(norm_cfg='BN'), r"norm_cfg='BN': give a dict with a type, such as dict\(type='BN'\)"),
        (dict(norm_cfg=dict(eps=1.)), 'norm_cfg='),
        (dict(resnet='mmdet.ResNet'), "resnet='mmdet.ResNet': give a dict"),
        (dict(base_channels=0), 'base_channels=0: give one whole number'),
        (dict(base_channels='8'), "base_channels='8'"),
        (dict(num_modules='2'), "num_modules='2'"),
        (dict(num_modules=HUGE), 'num_modules=1000000000'),
        (dict(num_tokens=0), 'num_tokens=0'),
        (dict(num_tokens=2.5), 'num_tokens=2.5'),
        (dict(token_channels=-4), 'token_channels=-4'),
        (dict(query_gain=NAN), 'query_gain=nan'),
        (dict(query_gain='1'), "query_gain='1'"),
        (dict(depth='18'), "depth='18'"),
        (dict(depth=[18]), r'depth=\[18\]'),
        (dict(arch=dict(depths=18)), 'depths=18: give 3 whole numbers'),
        (dict(arch=[18]), r'no arch \[18\]'),
    ],
    'XFormer': [
        (dict(init_lambda=NAN), 'init_lambda=nan: give one number from -65536'),
        (dict(init_lambda=float('inf')), 'init_lambda=inf'),
        (dict(init_lambda='1'), "init_lambda='1'"),
        (dict(arch=dict(mv3_depths=(-1, 1, 1, 1))), 'mv3_depths='),
        (dict(arch=dict(xf_depths=2)), 'xf_depths=2: give 4 whole numbers from 0'),
        (dict(arch=dict(xf_depths='0111')), "xf_depths='0111'"),
        (dict(arch=dict(stem_channels=8)), 'stem_channels=8: give 2 whole numbers'),
        (dict(arch=dict(stem_channels=(8, 0))), r'stem_channels=\(8, 0\)'),
        (dict(arch=dict(embed_dims=16)), 'embed_dims=16: give one or more'),
        (dict(arch=dict(num_heads='4')), "num_heads='4'"),
        (dict(arch=dict(kernel_size=3.)), 'kernel_size=3.0'),
        (dict(arch=dict(expand_ratio=NAN)), 'expand_ratio=nan'),
        (dict(arch=dict(mlp_ratio=(NAN,) * 4)), r'mlp_ratio=\(nan'),
        (dict(attn_mode=['map']), r"attn_mode=\['map'\]"),
    ],
}


@pytest.mark.parametrize('name, wrong, message', [
    (name, *case) for name in SMALL for case in [*COMMON, *WRONG[name]]])
def test_settings_that_cannot_work_are_refused_at_construction(name, wrong, message):
    settings = SMALL[name] if 'arch' not in wrong else {}
    with pytest.raises(ValueError, match=message):
        getattr(backbones, name)(**{**settings, **wrong})


@pytest.mark.parametrize('value', [[2, 3], (2, 3), range(2, 4), (np.int64(2), np.int32(3))])
def test_any_sequence_of_whole_numbers_is_taken(value):
    check_numbers('depths', value, count=2)


@pytest.mark.parametrize('interval', [(1024, 1024, 1024, 1024), (1, 1, 1, 1)])
def test_the_largest_interval_is_quick(interval):
    backbone = backbones.CrossFormer(**{**SMALL['CrossFormer'], 'interval': interval}).eval()
    with torch.no_grad():
        assert all(x.isfinite().all() for x in backbone(torch.randn(1, 3, 96, 160)))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', SMALL)
def test_an_empty_batch_gives_empty_maps(name, training):
    backbone = getattr(backbones, name)(**SMALL[name]).train(training)
    for size in ((64, 96), (50, 33)):
        maps = backbone(torch.randn(0, 3, *size))
        assert [x.shape[:2] for x in maps] == [(0, c) for c in backbone.out_channels]
        assert [x.shape[2:] for x in maps] == [
            tuple(-(-side // stride) for side in size) for stride in backbone.out_strides]
    if training:
        sum(x.sum() for x in maps).backward()
