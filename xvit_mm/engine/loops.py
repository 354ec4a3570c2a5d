"""mmengine's training loops, which resume bit for bit."""
import logging
from collections.abc import Iterator
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochLoop
from mmengine.runner import IterBasedTrainLoop as MMEngineIterLoop
from torch import nn

from .randomness import (index_sampler, preserved_randomness, random_state, seed_samples,
                         set_random_state, stop_workers)

_CLASSES = (MMEngineEpochLoop, MMEngineIterLoop)


def resumable_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a training loop with mmengine's loops replaced by those of this module."""
    settings = dict(settings)
    if 'by_epoch' in settings and 'type' not in settings:
        settings['type'] = _CLASSES[not settings.pop('by_epoch')]
    for cls, replacement in zip(_CLASSES, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        if settings.get('type') in (cls, cls.__name__, f'mmengine.{cls.__name__}'):
            settings['type'] = replacement
    return settings


class _Resumable:
    """What both loops share: where they stand, and how to get there again.

    Validation leaves no trace in the random numbers, so a checkpoint says the same whether it is
    written before or after one.

    Attributes:
        data_epoch: how often the loader has begun.
        batches_done: how many of its batches of this epoch have been trained on.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_epoch = self.batches_done = 0
        self._state_before_validation: dict[str, Any] | None = None
        self._batches = seed_samples(self.dataloader, self.runner.seed)

    def position(self, *, epoch_is_complete: bool) -> dict[str, Any]:
        """Where the data stand, for a checkpoint.

        Args:
            epoch_is_complete: the checkpoint counts the current epoch as done.
        """
        epoch_is_complete = epoch_is_complete and isinstance(self, MMEngineEpochLoop)
        sampler = None if self._batches is None else index_sampler(self._batches)
        seed = getattr(sampler, 'seed', None)
        return dict(
            data_epoch=self.data_epoch + epoch_is_complete,
            batches_done=0 if epoch_is_complete else self.batches_done,
            seed=None if self._batches is None else self._batches.seed,
            batch_size=self._batch_size(),
            sampler_seed=seed if isinstance(seed, int) else None)

    def _restore(self, default: dict[str, int]) -> bool:
        """Go to where a resumed checkpoint stands; whether its validation is yet to be done.

        Args:
            default: the position if the checkpoint says none, as those of mmengine's own hook.
        """
        resumed = getattr(self.runner, 'resumed_state', None)
        if resumed is None:
            if self._iter > 0:
                self.data_epoch, self.batches_done = default['data_epoch'], default['batches_done']
                print_log('the checkpoint holds no random states: the run goes on as well as it '
                          'can, not bit for bit', 'current', logging.WARNING)
            return False
        position = resumed['position']
        self.data_epoch, self.batches_done = position['data_epoch'], self._batches_of(position)
        if self._batches is not None:
            self._batches.seed = position['seed']
            if position['sampler_seed'] is not None:
                # Without a seed in the config, this run has drawn another one.
                index_sampler(self._batches).seed = position['sampler_seed']
        states = resumed['random_states']
        if len(states) == self.runner.world_size:
            set_random_state(states[self.runner.rank])
        else:
            print_log(f'the checkpoint is of a run with {len(states)} processes and this one has '
                      f'{self.runner.world_size}: it goes on with other random numbers',
                      'current', logging.WARNING)
        return not resumed['is_validated']

    def _batch_size(self) -> int | None:
        """Samples of an iteration in all processes; None where batches differ in size."""
        size = getattr(self._batches, 'batch_size', None)
        return size * self.runner.world_size if isinstance(size, int) else None

    def _batches_of(self, position: dict[str, Any]) -> int:
        """How many batches of this run hold the samples that are done."""
        done, saved, size = position['batches_done'], position.get('batch_size'), self._batch_size()
        if not saved or not size or saved == size:
            return done
        print_log(f'the checkpoint is of a run with {saved} samples in an iteration and this one '
                  f'has {size}: it goes on with the samples that are left, but iterations are '
                  'counted on, and learning rates that follow them stay as they are',
                  'current', logging.WARNING)
        return done * saved // size

    def _begin_epoch(self) -> Iterator[Any]:
        """The batches of an epoch that are not yet done."""
        if self._batches is not None:
            self._batches.epoch, self._batches.start = self.data_epoch, self.batches_done
        with preserved_randomness():
            iterator = iter(self.dataloader)
        if self._batches is None:
            for _ in range(self.batches_done):
                next(iterator, None)
        return iterator

    def random_state(self) -> dict[str, Any]:
        """The random state that training continues with, also during validation."""
        return self._state_before_validation or random_state()

    def _validate(self) -> None:
        self._state_before_validation = random_state()
        self.runner.val_loop.run()
        set_random_state(self._state_before_validation)
        self._state_before_validation = None

    def run(self) -> nn.Module:
        """Train, and validate as often as asked."""
        try:
            return self._run()
        finally:
            # Left to the garbage collector, they may take five seconds each.
            for loop in (self, self.runner._val_loop):
                stop_workers(getattr(loop, 'dataloader', None))


class EpochBasedTrainLoop(_Resumable, MMEngineEpochLoop):
    """`mmengine.runner.EpochBasedTrainLoop`, which resumes anywhere in an epoch."""

    def _run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        done = self._iter - self._epoch * len(self.dataloader)
        default = dict(data_epoch=self._epoch, batches_done=max(done, 0))
        if self._restore(default) and self.batches_done == 0:
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of one that was cut off."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self._begin_epoch(), self.batches_done):
            # Counted before the hooks run, one of which writes checkpoints.
            self.batches_done += 1
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self.data_epoch, self.batches_done = self.data_epoch + 1, 0

    def _validate_if_due(self) -> None:
        is_due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and is_due:
            self._validate()


class IterBasedTrainLoop(_Resumable, MMEngineIterLoop):
    """`mmengine.runner.IterBasedTrainLoop`, which resumes without loading what was trained on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # mmengine's own has begun to load from the start.
        self.dataloader_iterator = None

    def _run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        # To hooks the whole training is one epoch.
        self.runner.call_hook('before_train_epoch')
        if self._restore(self._position_of(self._iter)):
            self._validate_if_due()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            batch = self._next_batch()
            self.batches_done += 1
            self.run_iter(batch)
            self._decide_current_val_interval()
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _position_of(self, iteration: int) -> dict[str, int]:
        is_infinite = 'Infinite' in type(index_sampler(self._batches)).__name__
        length = iteration + 1 if is_infinite else len(self.dataloader)
        return dict(data_epoch=iteration // length, batches_done=iteration % length)

    def _next_batch(self) -> Any:
        if self.dataloader_iterator is None:
            _set_epoch(self.dataloader, self.data_epoch)
            self.dataloader_iterator = self._begin_epoch()
        try:
            return next(self.dataloader_iterator)
        except StopIteration:
            self.data_epoch, self.batches_done = self.data_epoch + 1, 0
            _set_epoch(self.dataloader, self.data_epoch)
            self.dataloader_iterator = self._begin_epoch()
            return next(self.dataloader_iterator)

    def _validate_if_due(self) -> None:
        is_due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and self._iter >= self.val_begin and is_due:
            self._validate()


def _set_epoch(loader: Any, epoch: int) -> None:
    sampler = index_sampler(loader.batch_sampler)
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
