"""Settings that several models have: their defaults, checks, and how they spread over blocks."""
from collections.abc import Iterable
from typing import Any

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
    if not 0 <= rate < 1:
        raise ValueError(f'drop_path_rate={rate}: must be in [0, 1)')


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise a ValueError unless the value of the setting `name` is one of those allowed."""
    if value not in allowed:
        raise ValueError(f'{name}={value!r}: choose from {", ".join(map(repr, allowed))}')
