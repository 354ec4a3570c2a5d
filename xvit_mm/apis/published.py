"""What a test of released weights gave, beside what the authors publish."""
from collections.abc import Mapping
from pathlib import Path

from xvit_mm.checkpoints import find_released
from xvit_mm.checkpoints.catalogue import SCHEME

# Name of a metric of mmdet, mmseg or mmpretrain, and the factor that makes it percent.
_METRICS = {
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
    'top-1': ('accuracy/top1', 1),
}


def compare_with_paper(
    metrics: Mapping[str, float], checkpoint: str | Path, *, tta: bool = False
) -> str:
    """One line such as `box AP 44.4 (paper 44.4)`; empty for other weights than released ones.

    Args:
        metrics: what the runner's `test` returns.
        checkpoint: the address of the weights, `official://NAME`.
        tta: the test was with test-time augmentation, for which some papers have a figure.
    """
    scheme, _, name = str(checkpoint).partition('://')
    if scheme != SCHEME:
        return ''
    paper = find_released(name).paper
    parts = []
    for metric, (key, factor) in _METRICS.items():
        published = paper.get(f'{metric} with --tta') if tta else paper.get(metric)
        if key in metrics and metric in paper:
            parts.append(f'{metric} {factor * metrics[key]:.1f} (paper {published or "-"})')
    return ', '.join(parts)
