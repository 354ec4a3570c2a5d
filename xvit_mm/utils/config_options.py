"""What the options of a command line change in a config; each function changes it in place."""
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from .config import ConfigError, datasets_in, dicts_in
from .training_files import LAST, checkpoints_in

# By option: mmengine's class, and the packages one of which it needs.
_TRACKERS = {
    'tensorboard': ('TensorboardVisBackend', ('tensorboard', 'tensorboardX')),
    'wandb': ('WandbVisBackend', ('wandb',)),
}


def revert_sync_bn(cfg: Config) -> None:
    """Make every SyncBN of the model a BN: outside distributed training it cannot run."""
    found = [node for node in dicts_in(cfg.get('model'))
             if node.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN')]
    for node in found:
        node['type'] = 'BN'
    if found:
        print_log(f'SyncBN becomes BN in {len(found)} places of the model: it needs several '
                  'processes with a GPU each', 'current')


def use_amp(cfg: Config) -> None:
    """Switch to mixed precision: on a GPU float16, on a CPU bfloat16.

    Raises:
        ConfigError: the CPU has no instructions for bfloat16, or the optimizer wrapper is a special
            one.
    """
    import torch

    from .cpu import BF16_FLAGS, has_bf16_instructions
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp works with optim_wrapper.type OptimWrapper, not {kind!r}')
    if not torch.cuda.is_available():
        if not has_bf16_instructions():
            raise ConfigError(
                '--amp needs a GPU, or a CPU with instructions for bfloat16 (on Linux one of the '
                f'flags {", ".join(BF16_FLAGS)} in /proc/cpuinfo), and this machine has neither; '
                'leave it out')
        cfg.optim_wrapper.type = 'xvit_mm.CPUAmpOptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            cfg.optim_wrapper.pop(key, None)
        return
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_fast_inference(cfg: Config) -> None:
    """Test in the form that a CPU computes fastest; see `xvit_mm.FastInferenceHook`."""
    _add_hook(cfg, 'fast_inference', 'xvit_mm.FastInferenceHook')


def use_compile(cfg: Config, *, testing: bool = False) -> None:
    """Compile the backbone by torch.compile; entries of `cfg.compile` go to it.

    Training compiles by itself what `cfg.compile` asks for, a test by `xvit_mm.CompileHook`.
    """
    cfg.compile = cfg.get('compile') or True
    if testing:
        _add_hook(cfg, 'compile', 'xvit_mm.CompileHook')


def _add_hook(cfg: Config, name: str, kind: str) -> None:
    """Add a default hook, unless the config has one of this name."""
    # mmengine's `setdefault` returns another dict than the one that it keeps.
    cfg.default_hooks = {name: dict(type=kind), **cfg.get('default_hooks', {})}


def use_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the batch size of this run.

    Raises:
        ConfigError: the config does not say for which batch size its learning rate is.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ConfigError(
            '--auto-scale-lr: the config lacks auto_scale_lr=dict(base_batch_size=...), the batch '
            'size that its learning rate is for')
    cfg.auto_scale_lr.enable = True


def use_pretrained(cfg: Config, checkpoint: str) -> None:
    """Start the backbone from a checkpoint.

    Args:
        cfg: changed in place.
        checkpoint: a path, an address, a name in a model zoo, or `official` for the weights that
            the authors released for this backbone.

    Raises:
        ConfigError: the config's model has no backbone.
        CheckpointError: `official`, and there are no weights of this backbone.
    """
    if 'backbone' not in cfg.get('model', {}):
        raise ConfigError('--pretrained: the config has no model.backbone to load it into')
    if checkpoint == 'official':
        from xvit_mm.checkpoints import official_classifier
        checkpoint = official_classifier(cfg.model.backbone)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)


def use_checkpoint(cfg: Config, checkpoint: str) -> None:
    """Test or predict with a checkpoint.

    Args:
        cfg: changed in place.
        checkpoint: a path, an address, a name in a model zoo, or `official` for the whole model
            that the authors released for this config.

    Raises:
        CheckpointError: `official`, and there is no such model.
    """
    if checkpoint == 'official':
        from xvit_mm.checkpoints import official_model
        checkpoint = official_model(cfg)
    # The config of a resumed run says resume, which would ask for the training data.
    cfg.load_from, cfg.resume = checkpoint, False


def use_resume(cfg: Config, checkpoint: str | None = None) -> None:
    """Resume from a checkpoint, or from the newest readable one in the work folder.

    Without any, training starts as the config says, and a line says so.
    """
    if checkpoint is None and not _has_training(cfg.work_dir):
        print_log(f'{cfg.work_dir} has no checkpoint to resume from: training starts from the '
                  'beginning')
        cfg.resume = False
        return
    # The runner looks for the newest checkpoint itself.
    cfg.resume, cfg.load_from = True, checkpoint


def check_no_training(cfg: Config) -> None:
    """Refuse to start a run that would overwrite an earlier one.

    Raises:
        ConfigError: the work folder holds checkpoints, and the config does not say `resume`.
    """
    if not cfg.get('resume') and _has_training(cfg.work_dir):
        names = [path.name for path in checkpoints_in(cfg.work_dir)][:3]
        raise ConfigError(
            f'{cfg.work_dir} holds checkpoints of an earlier run ({", ".join(names)} ...): '
            'go on with --resume, choose another --work-dir, or add --overwrite to remove them and '
            'begin again')


def remove_training(work_dir: str | Path) -> None:
    """Remove the checkpoints of an earlier run, its best ones too."""
    best = Path(work_dir).glob('best_*.pth')
    for path in [Path(work_dir, LAST), *checkpoints_in(work_dir), *best]:
        path.unlink(missing_ok=True)


def _has_training(work_dir: str | Path) -> bool:
    return bool(checkpoints_in(work_dir))


def use_tta(cfg: Config) -> None:
    """Test with the config's test-time augmentation.

    Raises:
        ConfigError: the config has none.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ConfigError('--tta: the config has no tta_model and tta_pipeline')
    for dataset in datasets_in(cfg.test_dataloader):
        dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def dump_predictions(cfg: Config, path: str | Path) -> None:
    """Have the test write all predictions to a pickle.

    Raises:
        ConfigError: the name does not say so.
    """
    if Path(path).suffix not in ('.pkl', '.pickle'):
        raise ConfigError(f'--out {str(path)!r}: the name must end in .pkl or .pickle')
    # mmdet's own compresses masks.
    kind = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    cfg.test_evaluator = [*metrics, dict(type=kind, out_file_path=str(path))]


def use_tracker(cfg: Config, name: str) -> None:
    """Log losses, metrics and the config to `tensorboard` or `wandb` too.

    Raises:
        ConfigError: its package is not installed; says how to install it.
    """
    backend, packages = _TRACKERS[name]
    if not any(find_spec(package) for package in packages):
        raise ConfigError(f'--{name} needs the package {packages[0]}: pip install {packages[0]}')
    if not cfg.get('visualizer'):
        cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    backends = cfg.visualizer.get('vis_backends') or []
    if backend not in [entry['type'] for entry in backends]:
        cfg.visualizer.vis_backends = [*backends, dict(type=backend)]


def show_pictures(cfg: Config, folder: str | Path) -> None:
    """Have the test draw every prediction into a folder."""
    hook = dict(type='xvit_mm.PicturesHook', max_images=10**9, folder=str(Path(folder).resolve()))
    # A config of the user's own may have it there.
    cfg.custom_hooks = [h for h in cfg.get('custom_hooks', []) if h['type'] != hook['type']]
    cfg.setdefault('default_hooks', {})
    cfg.default_hooks.pictures = hook
