"""Checkpoints that a kill at any moment leaves whole, and from which a run goes on bit for bit."""
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import Runner

from xvit_mm.engine.randomness import random_state
from xvit_mm.engine.resuming import STATE
from xvit_mm.registry import HOOKS
from xvit_mm.utils.files import check_room, remove_partial_files, write_text
from xvit_mm.utils.training_files import LAST

_REPLACED = 'replaced_best_ckpts'  # in the message hub: removed once their successor is recorded


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """`mmengine.hooks.CheckpointHook` that never removes a file before its successor stands.

    It takes the same arguments. What differs:

    - Outdated checkpoints, and the previous best one, are removed after the new one is complete.
    - Weights that hold NaN are not saved, since nothing can be resumed from them.
    - `last_checkpoint` holds a path relative to the work folder, which may be moved or renamed.
    - A checkpoint is written again after the validation that belongs to it, with its metrics.
      Resuming from one that was not validated begins with the validation.
    - The random states of all processes and the position in the data are saved.

    `xvit_mm.Runner` takes this hook in place of mmengine's.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the room on the disk, and clear away what an interrupted run was about to."""
        out_dir = self.out_dir or runner.work_dir
        if '://' not in str(out_dir) and is_main_process():
            os.makedirs(out_dir, exist_ok=True)
            check_room(out_dir, _size_of(runner))
        super().before_train(runner)
        self._relocate(runner)
        self._random_states: list[dict[str, Any]] = []
        self._saved_step: int | None = None
        self._is_validated = self._epoch_is_complete = False
        if self._is_local() and is_main_process():
            remove_partial_files(self.out_dir)
            self._remove_replaced(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint, and record the validation in the last one."""
        if not hasattr(self, 'file_backend'):  # validation only
            return
        self._is_validated, self._saved_step = True, None
        try:
            super().after_val_epoch(runner, metrics)  # saves again after a new best
            step = runner.epoch if self.by_epoch else runner.iter
            is_last = os.path.basename(self.last_ckpt or '') == self.filename_tmpl.format(step)
            if is_last and self._saved_step != step:
                meta = dict(epoch=runner.epoch, iter=runner.iter)
                self._save_checkpoint_with_step(runner, step, meta)
        finally:
            self._is_validated = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add what resuming bit for bit takes; a best checkpoint holds weights only."""
        if 'optimizer' in checkpoint and hasattr(runner.train_loop, 'position'):
            checkpoint[STATE] = dict(
                random_states=self._random_states,
                is_validated=self._is_validated,
                position=runner.train_loop.position(epoch_is_complete=self._epoch_is_complete))

    def _save_checkpoint(self, runner: Runner) -> None:
        # The loop counts an epoch after its hooks have run.
        self._epoch_is_complete = self.by_epoch
        try:
            super()._save_checkpoint(runner)
        finally:
            self._epoch_is_complete = False

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if _weights_are_nan(runner):
            runner.logger.warning(f'{self.filename_tmpl.format(step)} is not written: the weights '
                                  'hold NaN, so the training has diverged')
            return
        loop = runner.train_loop
        state = loop.random_state() if hasattr(loop, 'random_state') else random_state()
        self._random_states = all_gather_object(state)
        outdated = self._keep(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if is_main_process():
            is_local = self._is_local()
            last = os.path.relpath(self.last_ckpt, runner.work_dir) if is_local else self.last_ckpt
            write_text(Path(runner.work_dir, LAST), last)
            for old in outdated:
                self._remove(self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(old)))
        self._saved_step = step

    def _keep(self, runner: Runner, step: int) -> list[int]:
        """Add a step to those that are kept; returns the ones to be removed when it is saved."""
        if self.max_keep_ckpts <= 0:
            return []
        steps = [kept for kept in self.keep_ckpt_ids if kept != step] + [step]
        self.keep_ckpt_ids.clear()
        self.keep_ckpt_ids.extend(steps)  # drops the oldest
        # With the outdated ones: a run that resumes after a kill before their removal removes them.
        runner.message_hub.update_info('keep_ckpt_ids', steps)
        return steps[:-self.max_keep_ckpts]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        previous = dict(self._best())
        # mmengine removes what it finds there before it saves anything.
        for key in previous:
            self._set_best(key, None)
        runner.message_hub.update_info(_REPLACED, [path for path in previous.values() if path])
        super()._save_best_checkpoint(runner, metrics)
        for key, path in self._best():
            if path is None:
                self._set_best(key, previous.get(key))
        self._remove_replaced(runner)

    def _best(self) -> Iterator[tuple[str, str | None]]:
        """Metric and path of each best checkpoint; a single metric goes by the name ''."""
        if not self.save_best:
            return
        if len(self.key_indicators) == 1:
            yield '', self.best_ckpt_path
        else:
            yield from [(key, self.best_ckpt_path_dict.get(key)) for key in self.key_indicators]

    def _set_best(self, key: str, path: str | None) -> None:
        if key:
            self.best_ckpt_path_dict[key] = path
        else:
            self.best_ckpt_path = path

    def _relocate(self, runner: Runner) -> None:
        """Have resumed paths lead into this work folder, which may be a copy of another."""
        if not self._is_local():
            return
        if last := runner.message_hub.runtime_info.get('last_ckpt'):
            self.last_ckpt = os.path.join(self.out_dir, os.path.basename(last))
        for key, path in list(self._best()):
            if path:
                path = os.path.join(self.out_dir, os.path.basename(path))
                self._set_best(key, path)
                runner.message_hub.update_info(f'best_ckpt_{key}' if key else 'best_ckpt', path)

    def _remove_replaced(self, runner: Runner) -> None:
        if not is_main_process():
            return
        current = {os.path.basename(path) for _, path in self._best()
                   if path and self.file_backend.exists(path)}
        for path in runner.message_hub.runtime_info.get(_REPLACED) or ():
            name = os.path.basename(path)
            path = self.file_backend.join_path(self.out_dir, name)
            if current and name not in current and self._remove(path):
                runner.logger.info(f'The previous best checkpoint {path} is removed')

    def _remove(self, path: str) -> bool:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # as deepspeed writes them
            self.file_backend.rmtree(path)
        else:
            return False
        return True

    def _is_local(self) -> bool:
        return '://' not in str(self.out_dir)


def _weights_are_nan(runner: Runner) -> bool:
    """Whether a tensor of the first process's model holds NaN, told to all processes."""
    found = [is_main_process() and any(
        tensor.is_floating_point() and bool(tensor.isnan().any())
        for tensor in runner.model.state_dict().values())]
    broadcast_object_list(found)
    return found[0]


def _size_of(runner: Runner) -> int:
    """About the bytes of a checkpoint: the weights and two states of an optimizer."""
    tensors = runner.model.state_dict().values()
    return 3 * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
