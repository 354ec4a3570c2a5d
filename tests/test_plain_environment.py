"""What works with torch, mmengine, einops, mmcv-lite and what these require, and nothing else."""
import subprocess
from pathlib import Path

import pytest
from other_environments import make_environment
from small_models import SMALL

PLAIN = ('torch', 'mmengine', 'einops', 'mmcv')
HIDDEN = ('mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'timm', 'scipy', 'pycocotools')
RUN = f'''
import importlib.util
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
import xvit_mm
from small_models import SMALL
from xvit_mm.registry import MODELS

assert not any(map(importlib.util.find_spec, {HIDDEN!r}))
x = torch.randn(2, 3, 64, 96)
for name, settings in SMALL.items():
    settings = dict(settings, drop_path_rate=0.)  # else VTResNet needs mmpretrain's ResNet
    try:
        backbone = MODELS.build(dict(type=f'xvit_mm.{{name}}', **settings))
    except ImportError as error:
        print(name, 'refused:', error)
        continue
    maps = backbone(x)
    sum(m.mean() for m in maps).backward()
    print(name, len(maps))
    channels = list(backbone.out_channels)
neck = MODELS.build(dict(type='xvit_mm.VTFPN', in_channels=channels, out_channels=16,
                         token_channels=16, num_heads=2, num_outs=4))
print('VTFPN', len(neck(maps)))
for name, width, feats in (
    ('CrossFormerClsHead', 8, (torch.randn(2, 8, 2, 3),)),
    ('CrossViTClsHead', (8, 12), (torch.randn(2, 8), torch.randn(2, 12))),
    ('VTClsHead', 8, (torch.randn(2, 4, 8),)),
    ('XFormerClsHead', 8, (torch.randn(2, 8, 2, 3),)),
):
    head = MODELS.build(dict(type=f'xvit_mm.{{name}}', num_classes=5, in_channels=width))
    print(name, tuple(head(feats).shape))
'''
EXPECTED = ['CrossFormer 4', 'CrossViT 4', 'XFormer 4', 'VTFPN 4', 'CrossFormerClsHead (2, 5)',
            'CrossViTClsHead (2, 5)', 'VTClsHead (2, 5)', 'XFormerClsHead (2, 5)']


@pytest.mark.training
def test_all_models_but_one_run_with_mmcv_lite_and_nothing_else(tmp_path: Path) -> None:
    python = make_environment(tmp_path / 'env', only=PLAIN, ops=False)
    done = subprocess.run([python, '-c', RUN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    refused = [line for line in lines if 'refused' in line]
    assert [line for line in lines if line not in refused] == EXPECTED
    # VT-ResNet is built of the ResNet of one of the three packages.
    assert len(refused) == 1 and refused[0].startswith('VTResNet refused: VTResNet takes')
    assert len(SMALL) == 4
