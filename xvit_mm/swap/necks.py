"""Necks: how each takes its input channels. A new neck is a line in `NECKS`."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xvit_mm.utils.config import ConfigError

from .changes import Changes
from .maps import Level


@dataclass(frozen=True)
class NeckRule:
    """How a neck is told its channels.

    Attributes:
        deepest_first: `in_channels` begin with the map of the largest stride.
        divisor: of the padded image; necks that double the size of a map need it.
        outputs: channels of the maps it gives out, where they depend on those it takes in: from
            its config and the new `in_channels`.
        ties: further entries that repeat its channels, beside the neck's own `in_channels`.
        indexes_all: it takes sizes from maps whose values it does not read, so none may go.
        obsolete: it makes a pyramid out of maps of one stride, and our maps are one.
        refusal: why it cannot be done.
    """

    deepest_first: bool = False
    divisor: int | None = None
    outputs: Callable[[dict[str, Any], list[int]], list[int]] | None = None
    ties: tuple[str, ...] = ()
    indexes_all: bool = False
    obsolete: bool = False
    refusal: str | None = None


def _jpu_outputs(neck: dict[str, Any], channels: list[int]) -> list[int]:
    """JPU passes its inputs on, except the last, for which it gives four dilated ones."""
    passed = channels[neck.get('start_level', 0):-1]
    return [*passed, neck.get('mid_channels', 512) * len(neck.get('dilations', (1, 2, 4, 8)))]


NECKS = {
    'FPN': NeckRule(divisor=32),
    'FPN_CARAFE': NeckRule(divisor=32),
    'FPN_DropBlock': NeckRule(divisor=32),
    'FPG': NeckRule(divisor=32),
    'HRFPN': NeckRule(divisor=32),
    'NASFPN': NeckRule(divisor=32),
    'NASFCOS_FPN': NeckRule(divisor=32, indexes_all=True),
    'PAFPN': NeckRule(divisor=32),
    'CSPNeXtPAFPN': NeckRule(divisor=32),
    'YOLOXPAFPN': NeckRule(divisor=32),
    'YOLOV3Neck': NeckRule(divisor=32, deepest_first=True),
    'ChannelMapper': NeckRule(),
    'DilatedEncoder': NeckRule(),
    'CTResNetNeck': NeckRule(divisor=32),
    'SSDNeck': NeckRule(ties=('model.neck.out_channels', 'model.bbox_head.in_channels')),
    'VTFPN': NeckRule(),
    'JPU': NeckRule(outputs=_jpu_outputs),
    'Feature2Pyramid': NeckRule(obsolete=True),
    'MultiLevelNeck': NeckRule(obsolete=True),
    'ICNeck': NeckRule(refusal='ICNet runs three copies of one backbone at three image sizes'),
    'MLANeck': NeckRule(refusal='SETR-MLA is made for four maps of one stride'),
    'RFP': NeckRule(refusal='it runs a second backbone on its own outputs'),
}


def short_name(config: Any) -> str:
    """Return the type of a module without its scope or package."""
    return str(config.get('type')).rpartition('.')[2] if isinstance(config, dict) else ''


def neck_place(changes: Changes) -> str | None:
    """Return the place of the neck that reads the backbone's maps, the first of several."""
    neck = changes.get('model.neck')
    return None if not neck else 'model.neck.0' if isinstance(neck, list) else 'model.neck'


def neck_rule(neck: dict[str, Any], levels: Sequence[Level]) -> NeckRule:
    """Return the rule of a neck; an unknown neck is recognised by its present channels.

    Raises:
        ConfigError: it cannot be done, or it is not clear how the neck counts its channels.
    """
    name = short_name(neck)
    if name in NECKS:
        rule = NECKS[name]
        if rule.refusal:
            raise ConfigError(f'neck {name}: {rule.refusal}')
        return rule
    given = neck.get('in_channels')
    channels = [level.channels for level in levels]
    if given == channels[-1] or (isinstance(given, (list, tuple)) and list(given) == channels):
        return NeckRule()
    if isinstance(given, (list, tuple)) and list(given) == channels[::-1]:
        return NeckRule(deepest_first=True)
    raise ConfigError(
        f'neck {name}: its in_channels={given!r} are not the channels {channels} of the backbone, '
        'so it is not clear where the new ones belong; add a line to NECKS in '
        'xvit_mm/swap/necks.py')


def levels_of_neck(neck: dict[str, Any], levels: Sequence[Level]) -> list[int]:
    """Return the indices of the maps that a neck uses.

    Raises:
        ConfigError: it asks for another number of maps than the backbone gives.
    """
    given = neck.get('in_channels')
    if not isinstance(given, (list, tuple)):
        return [len(levels) - 1]
    if len(given) != len(levels):
        raise ConfigError(
            f'neck {short_name(neck)}: in_channels={given!r}, but the backbone gives '
            f'{len(levels)} maps')
    # An end level counts from the first map, which must then stay.
    stays = neck.get('end_level', -1) != -1 or neck_rule(neck, levels).indexes_all
    first = 0 if stays else neck.get('start_level', 0)
    return list(range(first, len(levels)))


def set_neck(
    changes: Changes, place: str, rule: NeckRule, levels: Sequence[Level], used: Sequence[int]
) -> None:
    """Set the channels of a neck to those of `levels`, which replace the old maps `used`."""
    neck = changes.get(place)
    channels = [level.channels for level in levels]
    order = channels[::-1] if rule.deepest_first else channels
    given = neck['in_channels']
    listed = isinstance(given, (list, tuple))
    value = type(given)(order) if listed else channels[-1]
    what = 'deepest first, as this neck wants them' if rule.deepest_first and listed else \
        'high to low resolution' if listed and len(order) > 1 else 'of its last map'
    changes.set(f'{place}.in_channels', value, f"The new backbone's channels, {what}.")
    if used[0] and 'start_level' in neck:
        changes.set(
            f'{place}.start_level', 0,
            f'The neck began at map {used[0]}; now the backbone does not give the ones before, so '
            'that no part of it is without a gradient.')
    for tied in rule.ties:
        rest = changes.get(tied)[len(value):]
        changes.set(tied, type(rest)(value) + rest, 'Repeats the channels of the first maps.')
