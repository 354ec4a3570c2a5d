"""Image normalisation: the released weights expect RGB with ImageNet's mean and std."""
from typing import Any

from xvit_mm.utils.config import ConfigError

from .changes import Changes

MEAN = [123.675, 116.28, 103.53]
STD = [58.395, 57.12, 57.375]
_TOLERANCE = 0.02


def swap_colours(changes: Changes, scope: str) -> None:
    """Set the normalisation that the backbone expects.

    Raises:
        ConfigError: they do not have three colours.
    """
    places = ('model.data_preprocessor', 'data_preprocessor')
    present = [place for place in places if isinstance(changes.get(place), dict)]
    for place in present or places[:1]:
        _set_colours(changes, place, 'to_rgb' if scope == 'mmpretrain' else 'bgr_to_rgb')


def _set_colours(changes: Changes, place: str, to_rgb: str) -> None:
    now: dict[str, Any] = changes.get(place, {})
    if _are_close(now.get('mean'), MEAN) and _are_close(now.get('std'), STD) and now.get(to_rgb):
        return
    if len(now.get('mean') or MEAN) != len(MEAN):
        raise ConfigError(f'{place}: mean={now["mean"]} is not of RGB images')
    seen = f'mean {now.get("mean")}, std {now.get("std")}, {to_rgb}={now.get(to_rgb, False)}'
    if now.get('rgb_to_bgr'):
        changes.set(f'{place}.rgb_to_bgr', False)
    for key, value in (('mean', MEAN), ('std', STD), (to_rgb, True)):
        changes.set(f'{place}.{key}', value)
    changes.explain(place, (
        'RGB, normalised as for the ImageNet weights of this backbone. Before: '
        f'{seen}, which belonged to the weights of the old one.'))


def _are_close(values: Any, expected: list[float]) -> bool:
    return (isinstance(values, (list, tuple)) and len(values) == len(expected)
            and all(abs(a - b) <= _TOLERANCE * b for a, b in zip(values, expected)))
