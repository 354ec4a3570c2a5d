"""How the time of a training and of a validation divides among their parts."""
import functools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

DATA, REST, LOSS, OPTIMIZER = 'data', 'hooks and the rest', 'loss', 'optimizer'
PREDICTIONS, EVALUATION = 'predictions from maps', 'evaluation'
# Methods of a part of the model, and the part of the run that they are; None for the model's part.
_METHODS = {'forward': None, 'loss': None, 'predict': None, 'loss_by_feat': LOSS,
            'predict_by_feat': PREDICTIONS}


class Clock:
    """Time by part; what a part calls that is a part of its own does not count for it."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._running = [REST]
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self._mark = time.perf_counter()

    def credit(self, name: str) -> None:
        """Count the time since the last change for a part."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self._mark
        self._mark = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for a part."""
        self.credit(self._running[-1])
        self._running.append(name)
        try:
            yield
        finally:
            self.credit(self._running.pop())

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count every call of a method of an object for a part."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)


class PartsHook(Hook):
    """Times the iterations of a run after the first few; ends a training by `Enough`.

    For a training and a validation of one runner, in this order.
    """

    priority = 'VERY_HIGH'

    def __init__(self, clock: Clock, iterations: int, skipped: int) -> None:
        self.clock, self.iterations, self.skipped = clock, iterations, skipped

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        time_model(self.clock, runner.model)
        time_backward(self.clock, runner.model, wrapper)
        for method in ('step', 'zero_grad'):
            self.clock.wrap(wrapper, method, OPTIMIZER)

    def before_val(self, runner: Runner) -> None:
        for method in ('process', 'evaluate'):
            self.clock.wrap(runner.val_loop.evaluator, method, EVALUATION)

    def before_train_epoch(self, runner: Runner) -> None:
        self.clock.start()

    before_val_epoch = before_train_epoch

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        self.clock.credit(DATA)

    before_val_iter = before_train_iter

    def after_val_iter(
        self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        self.clock.credit(REST)
        if batch_idx + 1 == self.skipped:
            self.clock.start()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        self.after_val_iter(runner, batch_idx)
        if batch_idx + 1 == self.skipped + self.iterations:
            raise Enough

    def after_val_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.clock.credit(REST)


class Enough(Exception):
    """Everything is measured."""


def time_model(clock: Clock, model: nn.Module) -> None:
    """Time the direct children of a detector, segmentor or classifier."""
    for name, child in model.named_children():
        for method, part in _METHODS.items():
            if hasattr(child, method):
                clock.wrap(child, method, part or f'{name}, forward')


def time_backward(clock: Clock, model: nn.Module, wrapper: Any) -> None:
    """Time the backward pass: until the first gradient of a part's maps, what follows it works."""
    has_neck = getattr(model, 'neck', None) is not None
    followers = {'backbone': 'neck' if has_neck else 'heads and loss', 'neck': 'heads and loss'}

    def watch(name: str, maps: Any) -> None:
        seen: list[Tensor] = []

        def arrived(grad: Tensor) -> None:
            # The first gradient comes when all that follows is done, others while the part works.
            if not seen:
                clock.credit(f'{followers[name]}, backward')
                seen.append(grad)

        for x in maps if isinstance(maps, (list, tuple)) else (maps,):
            if isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(arrived)

    for name in followers:
        child = getattr(model, name, None)
        if child is not None:
            child.register_forward_hook(
                lambda module, args, maps, name=name: watch(name, maps))
    clock.wrap(wrapper, 'backward', 'backbone, backward')
