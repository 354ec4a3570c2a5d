"""Stages, and the ways to run their blocks."""
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# Calls a block with its inputs: directly, or with activation checkpointing.
Run = Callable[..., Any]


def call(block: Callable[..., Any], *inputs: Any) -> Any:
    """The plain way to run a block."""
    return block(*inputs)


class Stage(nn.Sequential):
    """Blocks in a row: what `nn.Sequential` does, with a choice of how blocks are run."""

    def forward(self, x: Tensor, run: Run = call) -> Tensor:
        for block in self:
            x = run(block, x)
        return x
