"""The comparisons of docs/performance.md: a backbone or neck, and what it competes with."""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Size = tuple[int, int]


@dataclass(frozen=True)
class Run:
    """Models of one size and batch, in inference or training; `maps` as (channels, stride)."""

    models: Sequence[str]
    size: Size
    batch: int = 1
    train: bool = False
    maps: Sequence[tuple[int, int]] = ()


_CHANNELS = 'in_channels=[256,512,1024,2048],out_channels=256'
_MODELS = {
    'crossformer': ('xvit_mm.CrossFormer:arch=s', 'OfficialCrossFormer:arch=s',
                    'mmdet.SwinTransformer'),
    'crossvit': ('xvit_mm.CrossViT:arch=small,out_type=cls_token',
                 'timm.crossvit_small_240'),
    'xformer': ('xvit_mm.XFormer', 'mmpretrain.MobileViT:arch=small'),
    'vt_resnet': ('xvit_mm.VTResNet:arch=r50', 'mmdet.ResNet:depth=50,norm_eval=False'),
    'vt_fpn': (f'xvit_mm.VTFPN:{_CHANNELS},num_outs=4', f'mmdet.FPN:{_CHANNELS},num_outs=4'),
}
_MAPS = {'vt_fpn': ((256, 4), (512, 8), (1024, 16), (2048, 32))}
COMPARISONS = tuple(_MODELS)

# Names of runs: whether they train, size and batch.
CASES = {
    f'{"training" if train else "inference"}-{size[0]}x{size[1]}-{batch}': (train, size, batch)
    for train in (False, True)
    for size, batch in (((224, 224), 1), ((224, 224), 8), ((512, 512), 1), ((512, 512), 8),
                        ((800, 1344), 1))
    # On a CPU a step on one small image is over before it can be timed well.
    if not (train and size == (224, 224) and batch == 1)
}


def runs_of(comparison: str, cases: Iterable[str] = CASES) -> Iterator[Run]:
    """The sizes and batches of a comparison, inference first."""
    for train, size, batch in (CASES[case] for case in cases):
        if comparison == 'crossvit':
            # timm's resizes every image to the size it was built for.
            if size != (224, 224):
                continue
            size = 240, 240
        yield Run(_MODELS[comparison], size, batch, train, _MAPS.get(comparison, ()))
