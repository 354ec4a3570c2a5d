"""How many operations a CrossFormer launches, which decides its speed on a GPU at small batches."""
import random
from collections import OrderedDict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from versions import not_in_torch_2_1

from xvit_mm.models.backbones import CrossFormer
from xvit_mm.models.layers import group_tokens, grouping

newer_torch = not_in_torch_2_1('operations that stand for whole layers, as the limits count them')

# Operations that neither compute nor copy.
VIEWS = set('''
    _reshape_alias _unsafe_view alias as_strided chunk detach diagonal empty empty_like
    empty_strided expand flatten lift_fresh narrow new_empty new_empty_strided permute reshape
    select slice split split_with_sizes squeeze t transpose unbind unflatten unfold unsqueeze
    view'''.split())
# Forward, and forward and backward, of the official code on one image of this size.
OFFICIAL = {(224, 224): (631, 1283), (512, 512): (731, 1415), (800, 1344): (707, 1379)}
COCO_SIZES = [(h, w) for h in (480, 608, 736, 800) for w in range(480, 1345, 96)]


class Launches(TorchDispatchMode):
    """Counts the operations that compute or copy."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split('::')[1]
        if name not in VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=['CPU', 'GPU'])
def device_kind(request, monkeypatch):
    """The way to attend of either kind of device, on a CPU."""
    monkeypatch.setattr(grouping, 'calls_are_dear', lambda device: request.param == 'GPU')
    monkeypatch.setattr(grouping._groupings, '_entries', OrderedDict())
    return request.param


def slim() -> CrossFormer:
    """CrossFormer-S with a third of its channels: the same operations."""
    # The official code's counts are without drop path as well.
    return CrossFormer(
        dict(embed_dims=32, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8)), drop_path_rate=0.)


@newer_torch
@pytest.mark.parametrize('size', OFFICIAL, ids=str)
def test_a_training_step_launches_less_than_the_official_code(size, device_kind):
    model, image = slim().train(), torch.randn(1, 3, *size)
    model(image)
    with Launches() as launches:
        maps = model(image)
        forward = len(launches.names)
        torch.autograd.backward(maps, [torch.ones_like(x) for x in maps])
    expected = {'GPU': ((300, 880), (410, 1120), (390, 1100)),
                'CPU': ((300, 880), (520, 1410), (390, 1100))}[device_kind]
    limit = expected[list(OFFICIAL).index(size)]
    assert forward <= limit[0] < OFFICIAL[size][0]
    assert len(launches.names) <= limit[1]
    assert limit[1] < OFFICIAL[size][1]


@newer_torch
def test_evaluation_at_many_sizes_launches_little(device_kind):
    model = slim().eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 256, 256))
    for height, width in COCO_SIZES:
        # What a first look at an image of this size would leave behind.
        for stage, interval in enumerate((8, 4, 2, 1)):
            for i in (1, interval):
                sides = (-(-side // (4 * 2**stage)) for side in (height, width))
                group_tokens(*sides, 7, i, torch.device('cpu'))
    assert len(COCO_SIZES) == 40
    sample = random.Random(0).sample(COCO_SIZES, 4)
    with torch.no_grad(), Launches() as launches:
        for size in sample:
            model(torch.zeros(1, 3, *size))
    assert len(launches.names) / len(sample) <= 225


@pytest.mark.parametrize('training', [True, False])
def test_nothing_is_copied_from_the_host_at_a_size_seen_before(training, device_kind):
    model, image = slim().train(training), torch.randn(1, 3, 240, 320)
    with torch.set_grad_enabled(training):
        model(image)
        with Launches() as launches:
            model(image)
    assert not {'arange', '_to_copy', 'copy_', 'nonzero', 'index_put_'} & set(launches.names)
