"""Detectors and segmentors: choose the maps and pass their channels to necks and heads."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xvit_mm.utils.config import ConfigError

from .changes import Changes
from .maps import Level, build, matching_stages, measure_levels
from .necks import NeckRule, levels_of_neck, neck_place, neck_rule, set_neck, short_name
from .placing import place_backbone

# Where a detector without a neck states the channels of the maps that it works on.
DETECTOR_HEADS = (
    'panoptic_head.in_channels',
    'rpn_head.in_channels',
    'bbox_head.in_channels',
    'mask_head.in_channels',
    'semantic_head.in_channels',
    'roi_head.bbox_roi_extractor.out_channels',
    'roi_head.bbox_head.in_channels',
    'roi_head.mask_roi_extractor.out_channels',
    'roi_head.mask_head.in_channels',
)
# Heads of segmentors that read the first map, whatever their in_index, and how wide it is.
FIRST_MAP = 'c1_in_channels'
REFUSED_HEADS = {
    'LRASPPHead': 'it pools windows of 49 x 49 cells of a map of stride 16',
    'DPTHead': 'it reads the class token of a plain vision transformer',
    'STDCHead': 'it belongs to the network of the old backbone',
}


@dataclass(frozen=True)
class Reader:
    """A head of a segmentor that reads maps: its place, and which maps, as indices."""

    place: str
    levels: tuple[int, ...]


def swap_dense(changes: Changes, scope: str, ours: dict[str, Any]) -> None:
    """Put a backbone, given as a config, into a detector or segmentor.

    Raises:
        ConfigError: it cannot take the place of the old one.
    """
    levels = measure_levels(build(changes.get('model.backbone'), scope))
    try:
        stages = matching_stages(levels, by_depth=scope == 'mmseg')
    except ConfigError as error:
        raise ConfigError(f'{changes.get("model.backbone.type")}: {error}') from None
    place = neck_place(changes)
    rule = neck_rule(changes.get(place), levels) if place else NeckRule()
    if place and rule.obsolete:
        changes.set('model.neck', None, 'It made a pyramid of maps of one stride; these are one.')
        place = None
    readers = []
    if scope == 'mmseg':
        _join_cascade(changes, levels, stages)
        readers = list(_readers(changes, len(levels)))
    if place:
        used = levels_of_neck(changes.get(place), levels)
    elif scope == 'mmseg':
        used = sorted({i for reader in readers for i in reader.levels})
    else:
        used = list(range(len(levels)))
    new = place_backbone(changes, ours, [stages[i] for i in used])
    _explain_maps(changes, levels, new, used)
    if place:
        _with_neck(changes, place, rule, new, used, readers)
    elif scope == 'mmseg':
        for reader in readers:
            _set_reader(changes, reader, {old: (i, new[i]) for i, old in enumerate(used)})
    else:
        _set_detector_heads(changes, levels, new)


def _with_neck(
    changes: Changes, place: str, rule: NeckRule, new: Sequence[Level], used: Sequence[int],
    readers: Sequence[Reader],
) -> None:
    set_neck(changes, place, rule, new, used)
    if rule.indexes_all:
        changes.set('find_unused_parameters', True, (
            'This neck takes no more than the sizes of some maps, so distributed training meets '
            'parameters without a gradient.'))
    # Segmentors pad to their crop, or resize maps to one another.
    if rule.divisor and not readers:
        _set_divisor(changes, rule.divisor)
    if rule.outputs:
        outputs = rule.outputs(changes.get(place), [level.channels for level in new])
        channels = {i: (i, Level(width, 0)) for i, width in enumerate(outputs)}
        for reader in readers:
            _set_reader(changes, reader, channels)


def _explain_maps(
    changes: Changes, old: Sequence[Level], new: Sequence[Level], used: Sequence[int]
) -> None:
    strides = [level.stride for level in new]
    if (before := [old[i].stride for i in used]) != strides:
        changes.explain('model.backbone.out_indices', (
            f'Output stride {strides[-1]} instead of {before[-1]}: the old maps, of strides '
            f'{_join(before)}, are matched from the deepest backwards, since our backbones have '
            'no dilated stages. The decoder works on a coarser map, with less memory and less '
            'detail; heads that read several levels (UPerHead, SegformerHead) lose nothing.'))
    if len(used) < len(old):
        changes.explain('model.backbone.out_indices', (
            'Only the maps that something reads: others would leave parameters without a '
            'gradient, which distributed training refuses.'))


def _join_cascade(changes: Changes, levels: Sequence[Level], stages: Sequence[int]) -> None:
    """Let both heads of a cascade read one map: OCRHead weighs its map by the first prediction."""
    heads = changes.get('model.decode_head')
    if not isinstance(heads, list) or short_name(heads[-1]) != 'OCRHead':
        return
    first, last = (_levels_read(head, len(levels)) for head in (heads[0], heads[-1]))
    if len(first) == len(last) == 1 and stages[first[0]] != stages[last[0]]:
        changes.set('model.decode_head.0.in_index', heads[-1]['in_index'], (
            'The first head reads the map of the second, since their maps no longer have the same '
            'size.'))


def _readers(changes: Changes, num_levels: int) -> Iterator[Reader]:
    """Yield the heads of a segmentor that read maps, nested ones included."""
    for name in ('decode_head', 'auxiliary_head'):
        yield from _readers_in(changes, f'model.{name}', num_levels, outer=True)


def _readers_in(
    changes: Changes, place: str, num_levels: int, *, outer: bool
) -> Iterator[Reader]:
    head = changes.get(place)
    if isinstance(head, list):
        for i in range(len(head)):
            yield from _readers_in(changes, f'{place}.{i}', num_levels, outer=outer)
    if not isinstance(head, dict):
        return
    if (name := short_name(head)) in REFUSED_HEADS:
        raise ConfigError(f'{place.removeprefix("model.")} {name}: {REFUSED_HEADS[name]}')
    if 'in_channels' in head and (outer or 'in_index' in head):
        yield Reader(place, _levels_read(head, num_levels))
    for key in head:
        yield from _readers_in(changes, f'{place}.{key}', num_levels, outer=False)


def _levels_read(head: dict[str, Any], num_levels: int) -> tuple[int, ...]:
    listed = isinstance(head['in_channels'], (list, tuple))
    index = head.get('in_index', list(range(num_levels)) if listed else -1)
    indices = [i % num_levels for i in (index if isinstance(index, (list, tuple)) else [index])]
    if short_name(head) == 'EncHead' and not head.get('add_lateral'):
        # It selects all of its maps, and reads the last.
        indices = indices[-1:]
    return tuple([0, *indices] if head.get(FIRST_MAP) else indices)


def _set_reader(
    changes: Changes, reader: Reader, levels: dict[int, tuple[int, Level]]
) -> None:
    """Set the channels of a head and, where maps were dropped, its indices."""
    head = changes.get(reader.place)
    read = [levels[i] for i in reader.levels]
    if head.get(FIRST_MAP):
        changes.set(f'{reader.place}.{FIRST_MAP}', read.pop(0)[1].channels,
                    'The channels of the first map, for the details.')
    given = head['in_channels']
    listed = isinstance(given, (list, tuple))
    widths = [level.channels for _, level in read]
    changes.set(f'{reader.place}.in_channels', type(given)(widths) if listed else widths[0],
                'The channels of the maps that this head reads.')
    if listed and head.get('channels') == sum(given):
        changes.set(f'{reader.place}.channels', sum(widths), 'As wide as the maps that it joins.')
    if 'in_index' in head:
        index, numbers = head['in_index'], [i for i, _ in read]
        if not isinstance(index, (list, tuple)):
            value = index if index < 0 and read[0][0] == len(levels) - 1 else numbers[0]
        else:
            value = type(index)(numbers)
        changes.set(f'{reader.place}.in_index', value,
                    'The same maps, counted among those that the new backbone gives.')


def _set_detector_heads(
    changes: Changes, old: Sequence[Level], new: Sequence[Level]
) -> None:
    """Set the channels of heads that read the backbone's maps without a neck."""
    if changes.get('model.roi_head.shared_head'):
        raise ConfigError(
            f'model.roi_head.shared_head {changes.get("model.roi_head.shared_head.type")} is the '
            "last stage of the old backbone; take the variant of this method with an FPN")
    channels = [level.channels for level in new]
    places = [p for p in (f'model.{name}' for name in DETECTOR_HEADS) if changes.has(p)]
    if not places:
        raise ConfigError(
            f'model {changes.get("model.type")} has neither a neck nor a head that states the '
            'channels of the backbone')
    for place in places:
        given = changes.get(place)
        if isinstance(given, (list, tuple)) and len(given) == len(channels):
            value: Any = type(given)(channels)
        elif given == old[-1].channels:
            value = channels[-1]
        else:
            raise ConfigError(
                f'{place}={given!r} does not fit the channels '
                f'{[level.channels for level in old]} of the old backbone')
        changes.set(place, value, 'The channels of the maps of the new backbone.')


def _set_divisor(changes: Changes, divisor: int) -> None:
    place = 'model.data_preprocessor.pad_size_divisor'
    if changes.get(place, 1) % divisor:
        changes.set(place, divisor, (
            'The backbone takes any size, but this neck doubles maps: sides that are multiples of '
            'the largest stride keep them in step.'))


def _join(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))
