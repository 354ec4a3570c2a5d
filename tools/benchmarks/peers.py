"""The comparisons of docs/performance.md: a backbone or neck, and what it competes with."""
from collections.abc import Iterator, Sequence
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

_INFERENCE = [((224, 224), 1), ((224, 224), 8), ((512, 512), 1), ((800, 1344), 1)]
_TRAINING = [((224, 224), 8), ((512, 512), 1), ((800, 1344), 1)]


def runs_of(comparison: str) -> Iterator[Run]:
    """The sizes and batches of a comparison that two CPU cores measure within minutes."""
    for train, cases in ((False, _INFERENCE), (True, _TRAINING)):
        for size, batch in cases:
            if comparison == 'crossvit':
                # timm's resizes every image to the size it was built for.
                if size != (224, 224):
                    continue
                size = 240, 240
            yield Run(_MODELS[comparison], size, batch, train, _MAPS.get(comparison, ()))
