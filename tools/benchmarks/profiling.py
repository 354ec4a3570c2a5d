"""Where the time of a pass goes, by kind of operation."""
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

# An operation counts with whatever it calls, such as the copy of a bias before a product.
KINDS = {
    'products': ('aten::mm', 'aten::addmm', 'aten::bmm', 'aten::baddbmm', 'aten::addbmm',
                 'mkldnn::_linear'),
    'convolutions': ('aten::convolution', 'aten::conv2d', 'aten::conv1d', 'aten::_convolution',
                     'aten::convolution_backward', 'aten::mkldnn_convolution'),
    'attention': ('aten::scaled_dot_product_attention', 'aten::_scaled_dot_product',
                  'aten::softmax', 'aten::_softmax'),
}
OTHER = 'other'


def shares(
    function: Callable[[], None], rounds: int = 1
) -> tuple[dict[str, float], Counter[str]]:
    """Shares of the time of some calls by kind of operation, and of the other operations.

    The time that Python takes between operations is not seen.
    """
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(rounds):
            function()
    by_kind: Counter[str] = Counter(dict.fromkeys([*KINDS, OTHER], 0.))
    others: Counter[str] = Counter()
    for event in profile.events():
        kind = _kind(event)
        by_kind[kind] += event.self_cpu_time_total
        if kind == OTHER:
            others[_name(event)] += event.self_cpu_time_total
    total = sum(by_kind.values()) or 1
    return ({kind: time / total for kind, time in by_kind.items()},
            Counter({name: time / total for name, time in others.items()}))


def _kind(event: Any) -> str:
    """The kind of the outermost operation that an event is part of."""
    kind = OTHER
    while event is not None:
        kind = next((k for k, names in KINDS.items() if _is_one_of(event.name, names)), kind)
        event = event.cpu_parent
    return kind


def _is_one_of(name: str, operations: tuple[str, ...]) -> bool:
    # Names of fused attention go on with the kernel and `_backward`.
    return name in operations or any(
        name.startswith(op) for op in operations if op.startswith('aten::_s'))


def _name(event: Any) -> str:
    """`add` of `aten::add`; the steps of autograd's engine are one."""
    return 'autograd' if event.name.startswith('autograd::') else event.name.rpartition('::')[2]
