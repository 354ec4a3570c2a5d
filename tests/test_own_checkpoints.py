"""What loading promises for checkpoints of this package, once for all backbones."""
from pathlib import Path

import pytest
import torch
from small_models import SMALL
from torch import nn

from xvit_mm.checkpoints import CheckpointError, load_official
from xvit_mm.registry import MODELS

pytestmark = pytest.mark.parametrize('name', SMALL)


class Detector(nn.Module):
    """A backbone and something that is not one."""

    def __init__(self, name: str, **settings) -> None:
        super().__init__()
        self.backbone = MODELS.build(dict(type=f'xvit_mm.{name}', **SMALL[name], **settings))
        self.neck = nn.Conv2d(self.backbone.out_channels[0], 4, 1)


def same(state_dict: dict, expected: dict) -> bool:
    return all(torch.equal(tensor, expected[key]) for key, tensor in state_dict.items())


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2)])
def test_a_backbone_takes_its_part_of_a_detectors_checkpoint(
    name: str, out_indices: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / 'epoch_1.pth'
    backbone = Detector(
        name, out_indices=out_indices,
        init_cfg=dict(type='Pretrained', checkpoint=str(path))).backbone
    # The same parts are built whatever is returned, but for the stages after the last map.
    source = Detector(name, out_indices=out_indices)
    torch.save(dict(state_dict=source.state_dict(), meta=dict(epoch=1)), path)
    assert not same(backbone.state_dict(), source.backbone.state_dict())
    backbone.init_weights()
    assert same(backbone.state_dict(), source.backbone.state_dict())


def test_the_report_accounts_for_every_tensor(name: str) -> None:
    source, target = Detector(name), Detector(name)
    report = load_official(target, {'state_dict': source.state_dict()})
    backbone = target.backbone.state_dict()
    assert report.backbone_tensors == len(backbone)
    assert len(report.loaded) == len(target.state_dict())
    assert not report.missing and not report.unexpected and not report.left_out
    assert f'{len(backbone)} of {len(backbone)} backbone tensors loaded, 2 others' in str(report)
    assert same(target.state_dict(), source.state_dict())


def test_a_checkpoint_without_a_tensor_is_refused_and_changes_nothing(name: str) -> None:
    state_dict, target = Detector(name).state_dict(), Detector(name)
    del state_dict[next(key for key in state_dict if key.startswith('backbone.'))]
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_official(target, {'state_dict': state_dict})
    assert same(target.state_dict(), before)


def test_a_checkpoint_of_each_other_backbone_is_refused(name: str) -> None:
    target = Detector(name).backbone
    for other in SMALL.keys() - {name}:
        with pytest.raises(CheckpointError):
            load_official(target, Detector(other).backbone.state_dict())
