"""Settings that several models have: their defaults, checks, and how they spread over blocks."""
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

MOST = 65_536
MOST_BLOCKS = 1024

# As the official transformers start.
TRUNC_NORMAL_INIT = [
    dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.),
    dict(type='Constant', layer='LayerNorm', val=1., bias=0.),
]


def drop_path_rates(last: float, num_blocks: int) -> list[float]:
    """A rate for each block, rising linearly from 0 to `last`."""
    return [last * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


def check_drop_path_rate(rate: float) -> None:
    """Raise a ValueError unless the rate is in [0, 1)."""
    if not isinstance(rate, Real) or not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate={rate!r}: must be in [0, 1)')


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise a ValueError unless the value of the setting `name` is one of those allowed."""
    if value not in tuple(allowed):
        raise ValueError(f'{name}={value!r}: choose from {", ".join(map(repr, allowed))}')


def check_numbers(
    name: str,
    value: Any,
    *,
    count: int | None = None,
    least: float = 1,
    most: float = MOST,
    whole: bool = True,
) -> None:
    """Check the value of the setting `name`: a number, or a sequence of numbers.

    Args:
        name: for the message.
        value: what the user gave.
        count: how many numbers there must be; 0 for one or more, None for a single one.
        least: the smallest number allowed.
        most: the largest. The default is far above any useful setting, and far below what could
            never be built.
        whole: whether the numbers must be whole.

    Raises:
        ValueError: the value is anything else; says what is allowed.
    """
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    numbers: Sequence[Any] = value if is_sequence else (value,)
    if is_sequence == (count is not None) and len(numbers) == (count or max(len(numbers), 1)) and (
            all(_is_number(number, whole) and least <= number <= most for number in numbers)):
        return
    how_many = {None: 'one', 0: 'one or more'}.get(count, count)
    what = f'{"whole " * whole}number{"s" * (count not in (None, 1))}'
    raise ValueError(f'{name}={value!r}: give {how_many} {what} from {least:g} to {most:g}')


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def check_mapping(name: str, value: Any) -> None:
    """Raise a ValueError unless the value of the setting `name` is a dict with a `type`."""
    if not isinstance(value, Mapping) or not value.get('type'):
        raise ValueError(f"{name}={value!r}: give a dict with a type, such as dict(type='BN')")
