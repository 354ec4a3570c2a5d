"""mmengine's runner, with checkpoints that are understood, accounted for and never half-written."""
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process, master_only
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner import load_state_dict
from torch import Tensor, nn
from torch.utils.data import DataLoader

from xvit_mm.checkpoints import (CheckpointError, NoBackbone, check_kinds, check_values,
                                 find_state_dict, load_tensors, read_checkpoint)
from xvit_mm.checkpoints.catalogue import SCHEME
from xvit_mm.registry import RUNNERS
from xvit_mm.utils.files import replaced_whole
from xvit_mm.utils.training_files import TEMPLATES, checkpoints_in

from .data_errors import NamedErrors
from .frozen import compile_frozen
from .hooks.checkpoint import CheckpointHook
from .loops import resumable_loop
from .optimizers import fuse_on_cpu
from .randomness import wrap_dataset
from .resuming import (STATE, check_model, check_optimizer, check_training_state, newest_readable,
                       other_groups, overridden, schedule_settings)

ReviseKeys = Sequence[tuple[str, str]]


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """`mmengine.runner.Runner` whose `load_from`, `resume` and test checkpoints may be official.

    - Code in a file is never run, whatever the model (`xvit_mm.checkpoints.read_checkpoint`).
    - For a model with one of our backbones official names are translated, and the backbone must be
      covered completely. Other models are loaded by name, as mmengine does.
    - `resume` without a path takes the newest checkpoint in the work folder that can be read.
    - A resumed training goes on bit for bit, see docs/reliability.md. For this mmengine's
      CheckpointHook and training loops are replaced by subclasses, whatever the config.
    - Checkpoints are written beside their place and renamed.

    Attributes:
        resumed_state: random states and position in the data of the checkpoint that the run
            continues from, or None.
        may_start_over: whether a run that cannot be resumed starts from the beginning.
    """

    resumed_state: dict[str, Any] | None = None
    may_start_over = False
    _other_schedulers: Sequence[str] = ()
    _is_resuming = False
    _is_testing = False

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = 'cpu',
        strict: bool = False,
        revise_keys: ReviseKeys = ((r'^module\.', ''),),
    ) -> dict[str, Any]:
        """Load a checkpoint into the model and return it.

        Args:
            filename: a path, an address or a name in a model zoo.
            map_location: as in `torch.load`.
            strict: refuse a checkpoint that lacks a tensor of the model, or has others.
            revise_keys: pairs of a pattern and its replacement, for the names in the checkpoint.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: unreadable, or the backbone of the model is not covered.
            RuntimeError: `strict`, and the checkpoint does not fit.
        """
        checkpoint = read_checkpoint(filename, map_location)
        if self._is_resuming:
            self._check_resumable(filename, checkpoint)
        checkpoint['state_dict'] = find_state_dict(checkpoint)
        if self._is_resuming and not any(isinstance(hook, EMAHook) for hook in self.hooks):
            self._undo_averages(checkpoint)
        # Some hooks change the weights here, as EMAHook does when it swaps in the averaged ones.
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = _unwrapped(self.model)
        state_dict = _revised(checkpoint['state_dict'], revise_keys)
        if self._is_resuming:
            check_model(filename, state_dict, model)
        # To compare with a paper, all of its model must be there.
        strict = strict or self._is_testing and str(filename).startswith(f'{SCHEME}://')
        try:
            report = self._load_tensors(model, state_dict, strict)
        except CheckpointError as error:
            raise type(error)(f'{filename}: {error}') from None
        if not (self._resume and 'ema_state_dict' in checkpoint):
            self._begin_averages()
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}\n{report}'.rstrip())
        return checkpoint

    def _undo_averages(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights that were trained from where EMAHook has put them."""
        trained = {name.removeprefix('module.'): tensor
                   for name, tensor in checkpoint.get('ema_state_dict', {}).items()}
        if trained:
            self.logger.warning('the checkpoint is of a run with EMAHook and this one has none: it '
                                'goes on from the weights that were trained, without averages')
        checkpoint['state_dict'].update(
            {name: trained[name] for name in checkpoint['state_dict'] if name in trained})

    def _begin_averages(self) -> None:
        """Set averaged weights to those of the model; EMAHook itself loads them by name alone."""
        for hook in self.hooks:
            if isinstance(hook, EMAHook) and hasattr(hook, 'ema_model'):
                hook.ema_model.module.load_state_dict(hook.src_model.state_dict())

    def _load_tensors(self, model: nn.Module, state_dict: dict[str, Tensor], strict: bool) -> str:
        """Load tensors by the names of our backbones, of other models as mmengine does."""
        try:
            return str(load_tensors(model, state_dict, strict=strict))
        except NoBackbone:
            own = model.state_dict()
            check_kinds(state_dict, own)
            check_values(state_dict, own)
            load_state_dict(model, state_dict, strict, self.logger)
            return ''

    def test(self) -> dict[str, float]:
        """Test the model; weights of the authors, `official://NAME`, must fit completely.

        Raises:
            CheckpointError: they do not.
        """
        self._is_testing = True
        try:
            return super().test()
        finally:
            self._is_testing = False

    def load_or_resume(self) -> None:
        """Load `load_from`, or resume from it or from the newest readable checkpoint.

        Raises:
            CheckpointError: there are checkpoints to resume from and none can be read.
        """
        if self._has_loaded or not self._resume or self._load_from is not None:
            super().load_or_resume()
            return
        path = self._newest_checkpoint()
        if path is None:
            self.logger.info(f'{self.work_dir} has no checkpoint to resume from')
        else:
            self.logger.info(f'resuming from {path}')
            self.resume(str(path))

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume a run; arguments as mmengine's.

        Raises:
            CheckpointError: the file cannot be read, holds weights only, or is of another model
                or other groups of parameters.
        """
        given = schedule_settings(self)
        self._is_resuming = True
        try:
            super().resume(filename, *args, **kwargs)
        except ValueError as error:
            if 'parameter group' not in str(error):
                raise
            raise other_groups(filename, error) from error
        finally:
            self._is_resuming = False
        check_optimizer(filename, self.optim_wrapper)
        if lines := [*self._other_schedulers, *overridden(given, schedule_settings(self))]:
            self.logger.warning(
                'the checkpoint goes on with its own settings, in place of these of the config:\n'
                + '\n'.join(f'  {line}' for line in lines) + '\nTo train with those of the config '
                f'from its weights: --cfg-options load_from={filename}, without --resume')

    @master_only
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint, whole or not at all; arguments as mmengine's.

        Raises:
            FolderError: the disk is full, or the folder cannot be written.
        """
        if '://' in str(out_dir) or file_client_args is not None:
            # Storage that shows a file when it is complete.
            super().save_checkpoint(out_dir, filename, file_client_args, **kwargs)
            return
        with replaced_whole(Path(out_dir, filename)) as partial:
            super().save_checkpoint(out_dir, partial.name, **kwargs)

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up the environment, on a CPU with gloo between the processes, as mmengine cannot."""
        if self.distributed and not is_distributed() and get_device() == 'cpu':
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(
        self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module
    ) -> nn.Module:
        """Wrap the model for distributed training, on a CPU without the numbers of GPUs."""
        if self.distributed and get_device() == 'cpu' and not is_model_wrapper(model):
            default = dict(
                type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False))
            model_wrapper_cfg = default | dict(model_wrapper_cfg or {})
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the training loop, mmengine's two in the form that resumes bit for bit."""
        return super().build_train_loop(resumable_loop(loop) if isinstance(loop, dict) else loop)

    def build_optim_wrapper(
        self, optim_wrapper: OptimWrapper | OptimWrapperDict | dict[str, Any]
    ) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizer and its wrapper; on a CPU with a fused step."""
        return super().build_optim_wrapper(
            fuse_on_cpu(optim_wrapper) if isinstance(optim_wrapper, dict) else optim_wrapper)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any], *args: Any, **kwargs: Any
    ) -> DataLoader:
        """Build a data loader; arguments as mmengine's.

        Raises:
            ConfigError: its annotations cannot be used, or no image is left of them.
        """
        names = NamedErrors(dataloader)
        with names:
            loader = MMEngineRunner.build_dataloader(dataloader, *args, **kwargs)
        names.check_length(loader.dataset)
        wrap_dataset(loader)
        return loader

    def register_hook(self, hook: Hook | dict[str, Any], priority: Any = None) -> None:
        """Register a hook, `xvit_mm.CheckpointHook` in place of mmengine's."""
        if isinstance(hook, dict) and hook.get('type') in _CHECKPOINT_HOOKS:
            self.logger.info('CheckpointHook: taking xvit_mm.CheckpointHook in its place, so that '
                             'an interrupted training can be resumed at any time')
            hook = {**hook, 'type': CheckpointHook}
        super().register_hook(hook, priority)

    def register_hooks(
        self,
        default_hooks: dict[str, Hook | dict[str, Any] | None] | None = None,
        custom_hooks: list[Hook | dict[str, Any]] | None = None,
    ) -> None:
        """Register the hooks of a config.

        `default_hooks.NAME=None` leaves out any of them. Of the hooks of this package one in
        `custom_hooks`, where configs used to have them, takes the place of the default one.
        """
        custom = {hook.get('type') for hook in custom_hooks or () if isinstance(hook, dict)}
        kept = {
            name: hook for name, hook in (default_hooks or {}).items()
            if (hook is not None or name in _MMENGINE_HOOKS)
            and not (isinstance(hook, dict) and _is_ours(hook['type']) and hook['type'] in custom)
            and not (name == 'visualization' and _is_idle(hook))
        }
        super().register_hooks(kept, custom_hooks)

    def _maybe_compile(self, target: str) -> None:
        """Compile the backbone, where the config says `compile`; its entries go to torch.compile.

        mmengine compiles a whole step, whose preprocessing, targets and losses break it into pieces
        that depend on the number of objects. Compiled in place, a backbone keeps its names.
        """
        if self.compile_backbone() is None:
            super()._maybe_compile(target)

    def compile_backbone(self, *, testing: bool = False) -> nn.Module | None:
        """Compile the backbone in place as the config's `compile` says, and return it.

        None if the config does not ask for it, or the model has no backbone. Testing on a CPU makes
        the weights constants of the graph (`compile_frozen`), unless `compile.frozen` is false.
        """
        options = self.cfg.get('compile')
        backbone = getattr(_unwrapped(self.model), 'backbone', None)
        if not options or not isinstance(backbone, nn.Module):
            return None
        if backbone._compiled_call_impl is None:
            options = {'dynamic': True, **({} if options is True else options)}
            frozen = options.pop('frozen', True) and options.get('backend', 'inductor') == 'inductor'
            on_cpu = all(p.device.type == 'cpu' for p in backbone.parameters())
            if testing and frozen and on_cpu:
                compile_frozen(backbone, **options)
            else:
                backbone.compile(**options)
            self.logger.info(f'{type(backbone).__name__} is compiled at its first images, which '
                             'takes minutes')
        return backbone

    def _newest_checkpoint(self) -> Path | None:
        found: list[Any] = [None]
        if is_main_process():
            hook = next((h for h in self.hooks if isinstance(h, MMEngineCheckpointHook)), None)
            folders, templates = [self.work_dir], list(TEMPLATES)
            if hook is not None:
                templates.insert(0, hook.filename_tmpl)
                if hook.out_dir and '://' not in str(hook.out_dir):
                    folders.append(Path(hook.out_dir, Path(self.work_dir).name))
            try:
                found = [newest_readable(
                    checkpoints_in(folders, templates), read_checkpoint, self.logger.warning)]
            except CheckpointError as error:
                if self.may_start_over:
                    self.logger.warning(f'starting from the beginning: {error}')
                else:
                    found = [error]
        broadcast_object_list(found)
        if isinstance(found[0], CheckpointError):
            raise found[0]
        return found[0]

    def _check_resumable(self, filename: str, checkpoint: dict[str, Any]) -> None:
        check_training_state(filename, checkpoint)
        self.resumed_state = checkpoint.get(STATE)
        saved, own = checkpoint.get('param_schedulers'), self.param_schedulers
        if isinstance(saved, list) and isinstance(own, list) and len(saved) != len(own):
            self._other_schedulers = [
                f'param_scheduler: {len(saved)} in the checkpoint, {len(own)} in the config']


# Names in default_hooks.
_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler',
                   'checkpoint')
_CHECKPOINT_HOOKS = ('CheckpointHook', 'mmengine.CheckpointHook', MMEngineCheckpointHook)


def _is_ours(kind: Any) -> bool:
    return str(kind).startswith('xvit_mm.')


def _is_idle(hook: Hook | dict[str, Any] | None) -> bool:
    """Whether a visualization hook waits for a stock test.py to switch it on; mmseg's warns so."""
    return isinstance(hook, dict) and not (hook.get('draw') or hook.get('enable'))


def _revised(state_dict: dict[str, Tensor], revise_keys: ReviseKeys) -> OrderedDict[str, Tensor]:
    """The tensors under revised names, with the versions of the modules that saved them."""
    revised = OrderedDict(state_dict)
    for pattern, replacement in revise_keys:
        revised = OrderedDict((re.sub(pattern, replacement, n), t) for n, t in revised.items())
    revised._metadata = getattr(state_dict, '_metadata', OrderedDict())
    return revised


def _unwrapped(model: nn.Module) -> nn.Module:
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
