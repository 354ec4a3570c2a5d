"""From a config file and command-line options to a config ready to run, or to a clear error."""
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from .training_files import LAST, checkpoints_in

from .shipped_configs import config_folder, find_config

# Top-level entries that a config need not have for a command line to set them.
_RUNNER_ENTRIES = {
    'auto_scale_lr', 'compile', 'custom_hooks', 'custom_imports', 'default_scope', 'env_cfg',
    'find_unused_parameters', 'launcher', 'load_from', 'log_level', 'log_processor',
    'model_wrapper_cfg', 'param_scheduler', 'randomness', 'resume', 'sync_bn', 'test_cfg',
    'train_cfg', 'val_cfg', 'visualizer', 'work_dir'
}
# Entries without a type whose keys are the arguments of one function, which refuses wrong ones.
_ARGUMENTS = {
    'optim_wrapper', 'randomness', 'test_dataloader', 'train_dataloader', 'val_dataloader'
}
# By option: mmengine's class, and the packages one of which it needs.
_TRACKERS = {
    'tensorboard': ('TensorboardVisBackend', ('tensorboard', 'tensorboardX')),
    'wandb': ('WandbVisBackend', ('wandb',)),
}


class ConfigError(ValueError):
    """A config or option that cannot work; the message says what to do."""


def load_config(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    data_root: str | Path | None = None,
) -> Config:
    """Read a config file and apply what the command line says.

    Args:
        path: the file; if a bare name is not found here, the config of that name that ships with
            the package, whatever its folder or, with a warning, its present name.
        options: dotted names and values, as `--cfg-options` gives them. Names that lead nowhere
            are refused, because mmengine would silently add them. A new entry is taken where what
            is built from the config would refuse a wrong one.
        data_root: folder of the data set, in place of the config's `data_root`.

    Raises:
        ConfigError: no such file, it is not a config, or an option or folder does not fit it.
    """
    cfg = _read(Path(path))
    for name in options or {}:
        _check_option(cfg, name, options)
    cfg.merge_from_dict(dict(options or {}))
    if data_root is not None:
        _set_data_root(cfg, Path(data_root))
    return cfg


def check_data(cfg: Config, *loaders: str) -> None:
    """Raise a ConfigError that names the first folder or file of these loaders that is missing."""
    for loader in loaders:
        for dataset in datasets_in(cfg.get(loader)):
            for expected in _expected_paths(dataset):
                if '://' not in str(expected) and not expected.exists():
                    raise ConfigError(
                        f'{loader}: {str(expected)!r} does not exist. Name the folder of the data '
                        f'set with --data-root FOLDER (now {dataset.get("data_root")!r}), or put '
                        'or link the data there; docs/datasets.md shows the layout')


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
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('fast_inference', dict(type='xvit_mm.FastInferenceHook'))


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
    # The config of a resumed training says resume, which would ask for the training data.
    cfg.load_from, cfg.resume = checkpoint, False


def use_resume(cfg: Config, checkpoint: str | None = None) -> None:
    """Go on with a training from a checkpoint, or from the newest readable one in the work folder.

    Without any there, the training starts as the config says, which a line tells.
    """
    if checkpoint is None and not _has_training(cfg.work_dir):
        print_log(f'{cfg.work_dir} has no checkpoint to resume from: the training starts from the '
                  'beginning')
        cfg.resume = False
        return
    # The runner looks for the newest checkpoint itself.
    cfg.resume, cfg.load_from = True, checkpoint


def check_no_training(cfg: Config) -> None:
    """Refuse to begin a training where an earlier one would be overwritten.

    Raises:
        ConfigError: the work folder holds checkpoints, and the config does not say `resume`.
    """
    if not cfg.get('resume') and _has_training(cfg.work_dir):
        names = [path.name for path in checkpoints_in(cfg.work_dir)][:3]
        raise ConfigError(
            f'{cfg.work_dir} holds checkpoints of an earlier training ({", ".join(names)} ...): '
            'go on with --resume, choose another --work-dir, or add --overwrite to remove them and '
            'begin again')


def remove_training(work_dir: str | Path) -> None:
    """Remove the checkpoints of an earlier training, its best ones too."""
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


def _read(path: Path) -> Config:
    path = _existing(path)
    try:
        return Config.fromfile(path)
    except (SyntaxError, OSError, ImportError, KeyError, NameError, TypeError, ValueError) as error:
        kind, text = type(error).__name__, path.read_text(errors='replace')
        raise ConfigError(
            f'{path} is not a valid config: {kind}: {error}{_instead_of_scope(text)}') from error


def _instead_of_scope(text: str) -> str:
    """What to write for a base such as `xvit_mm::NAME` or `mmseg::FILE`.

    mmengine takes no name without a folder after `::`, and OneDL's looks for distributions that go
    by other names.
    """
    if found := re.search(r'[\'"]xvit_mm::(?:.*/)?([\w.]+)[\'"]', text):
        return f". Write `__import__('xvit_mm').cfg('{found[1]}')` for the base {found[0]}"
    if found := re.search(r'[\'"](mmdet|mmseg|mmpretrain)::([^\'"]+)[\'"]', text):
        return (f". Write `__import__('{found[1]}').__path__[0] + '/.mim/configs/{found[2]}'` for "
                f'the base {found[0]}')
    return ''


def _existing(path: Path) -> Path:
    """The file itself, or the shipped config that a name or an old path means."""
    if path.is_file():
        return path
    if path.parent != Path('.') and path.parent.resolve() != config_folder():
        raise ConfigError(f'config {str(path)!r} does not exist')
    try:
        return find_config(path.name)
    except FileNotFoundError as error:
        raise ConfigError(f'config {str(path)!r} does not exist here, and {error}') from None


def _check_option(cfg: Config, name: str, options: Mapping[str, Any]) -> None:
    if name.startswith('custom_hooks.') and not cfg.get('custom_hooks'):
        hooks = ', '.join(f'default_hooks.{hook}' for hook in cfg.get('default_hooks', {}))
        raise ConfigError(
            f'--cfg-options {name}: the config has no custom_hooks; its hooks are {hooks}, and '
            'others are added as default_hooks.NAME.type=TYPE')
    node: Any = cfg
    keys = name.split('.')
    for i, key in enumerate(keys):
        known = _entries(node)
        if key in known:
            node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
            continue
        where = '.'.join(keys[:i])
        is_leaf = i == len(keys) - 1
        if not _may_add(node, where, key, options, is_leaf=is_leaf):
            raise ConfigError(_no_entry(name, where, key, known))
        return


def _may_add(
    node: Any, where: str, key: str, options: Mapping[str, Any], *, is_leaf: bool
) -> bool:
    """Whether a node of a config, with this dotted name, may get an entry that it lacks."""
    if not where:
        return key in _RUNNER_ENTRIES
    if where == 'default_hooks':
        return f'{where}.{key}.type' in options
    # What has a type may take any argument of that type, which is checked when it is built.
    if not isinstance(node, Mapping) or 'type' not in node and where not in _ARGUMENTS:
        return False
    # A slip in a path is far more likely than a new branch that is called nearly like another.
    return not get_close_matches(key, node, cutoff=0.9 if is_leaf else 0.8)


def _entries(node: Any) -> list[str]:
    if isinstance(node, (list, tuple)):
        return [str(i) for i in range(len(node))]
    return [str(key) for key in node] if isinstance(node, (Mapping, Config)) else []


def _no_entry(option: str, where: str, key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=3)
    place = f'under {where!r}' if where else 'at the top level of the config'
    there = ', '.join(known) or 'none'
    hint = f'did you mean {", ".join(close)}?' if close else f'there are: {there}'
    return f'--cfg-options {option}: no entry {key!r} {place}; {hint}'


def _set_data_root(cfg: Config, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f'--data-root {str(folder)!r} is not a folder')
    old = cfg.get('data_root')
    # Every path would lie below an empty one.
    if not isinstance(old, str) or not old.strip('/'):
        raise ConfigError(
            f'--data-root: the config has no data_root that could be replaced, but {old!r}')
    datasets = [dataset for split in ('train', 'val', 'test')
                for dataset in datasets_in(cfg.get(f'{split}_dataloader'))]
    paths = [path for dataset in datasets for path in _expected_paths(dataset)]
    if not any(path.is_relative_to(old) for path in paths):
        roots = ', '.join(sorted({repr(dataset.get('data_root')) for dataset in datasets}))
        raise ConfigError(
            f"--data-root replaces the config's data_root, {old!r}, but the data_root of its data "
            f'sets is {roots or "missing"}; set that with --cfg-options '
            'train_dataloader.dataset.data_root=FOLDER, and so on')
    _change_strings(cfg._cfg_dict, partial(_move, old=old.rstrip('/'), new=folder))


def _move(path: str, *, old: str, new: Path) -> str:
    """A path below one folder as the same path below another; any other string as it is."""
    if path != old and not path.startswith(f'{old}/'):
        return path
    return f'{new}/{path[len(old):].lstrip("/")}'


def _change_strings(node: Any, change: Callable[[str], str]) -> Any:
    """Nested dicts and lists with every string changed, the dicts in place."""
    if isinstance(node, str):
        return change(node)
    if isinstance(node, (list, tuple)):
        return type(node)(_change_strings(child, change) for child in node)
    if isinstance(node, dict):
        for key, child in node.items():
            node[key] = _change_strings(child, change)
    return node


def datasets_in(loader: Mapping[str, Any] | None) -> Iterator[dict]:
    """Every data set of a loader, inside wrappers such as RepeatDataset and ConcatDataset."""
    for dataset in _inner_datasets(loader or {}):
        yield from datasets_in(dataset) if _inner_datasets(dataset) else (dataset,)


def _inner_datasets(node: Mapping[str, Any]) -> list[dict]:
    inner = node.get('datasets') or node.get('dataset') or ()
    return [child for child in ([inner] if isinstance(inner, dict) else inner)
            if isinstance(child, dict)]


def _expected_paths(dataset: Mapping[str, Any]) -> Iterator[Path]:
    root = Path(dataset.get('data_root') or '')
    if dataset.get('data_root'):
        yield root
    if dataset.get('ann_file'):
        yield root / dataset['ann_file']
    prefix = dataset.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
        if isinstance(folder, str) and folder:
            yield root / folder


def dicts_in(node: Any) -> Iterator[dict]:
    """Every dict in nested dicts and lists, the outer ones first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from dicts_in(child)
