"""torch.compile with the weights as constants of the graph."""
from typing import Any

import torch
from torch import nn


def compile_frozen(model: nn.Module, **options: Any) -> None:
    """Compile a model in place for inference, with its weights as constants of the graph.

    Inductor then prepares them for the products and convolutions of a CPU, which also compute the
    bias, activation and residual that follow. With gradients, the model runs as
    `model.compile(**options)` would make it.

    A call refuses weights that differ from those of the first call, except where they were written
    through `.data`, which torch does not record. Compile again after each change. This forgets all
    graphs of the process, since they could hold former weights.

    Args:
        model: in eval mode.
        options: of `torch.compile`.
    """
    torch.compiler.reset()
    if 'mode' not in options:
        # Also keeps graphs apart from those of the same code that are not frozen.
        options['options'] = {'freezing': True, **options.get('options', {})}
    model.compile(**options)
    model._compiled_call_impl = _FrozenCall(model)


class _FrozenCall:

    def __init__(self, model: nn.Module) -> None:
        self._compiled = model._compiled_call_impl
        self._weights = [*model.parameters(), *model.buffers()]
        self._versions: list[int] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return self._compiled(*args, **kwargs)
        versions = [w._version for w in self._weights if not w.is_inference()]
        if self._versions not in (None, versions):
            raise RuntimeError(
                'the weights have changed since the first call, and the compiled graph holds the '
                'former ones: call compile_frozen() again, or compile without frozen weights')
        self._versions = versions
        # The option of this name comes too late for Dynamo, which decides what becomes a constant.
        with torch._inductor.config.patch(freezing=True):
            return self._compiled(*args, **kwargs)
