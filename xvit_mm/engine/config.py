"""From a config file and command-line options to a config ready to run, or to a clear error."""
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mmengine.config import Config

# Top-level entries that a config need not have for a command line to set them.
_RUNNER_ENTRIES = {
    'auto_scale_lr', 'compile', 'custom_hooks', 'custom_imports', 'default_scope', 'env_cfg',
    'find_unused_parameters', 'launcher', 'load_from', 'log_level', 'log_processor',
    'model_wrapper_cfg', 'param_scheduler', 'randomness', 'resume', 'sync_bn', 'test_cfg',
    'train_cfg', 'val_cfg', 'visualizer', 'work_dir'
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
        path: the file; without a folder and not found here, a config that ships with the package.
        options: dotted names and values, as `--cfg-options` gives them. Names that lead nowhere
            are refused, because mmengine would silently add them.
        data_root: folder of the data set, in place of the config's `data_root`.

    Raises:
        ConfigError: no such file, it is not a config, or an option or folder does not fit it.
    """
    cfg = _read(Path(path))
    for name in options or {}:
        _check_option(cfg, name)
    cfg.merge_from_dict(dict(options or {}))
    if data_root is not None:
        _set_data_root(cfg, Path(data_root))
    return cfg


def check_data(cfg: Config, *loaders: str) -> None:
    """Raise a ConfigError that names the first folder or file of these loaders that is missing."""
    for loader in loaders:
        dataset = innermost((cfg.get(loader) or {}).get('dataset') or {})
        for expected in _expected_paths(dataset):
            if '://' not in str(expected) and not expected.exists():
                raise ConfigError(
                    f'{loader}: {str(expected)!r} does not exist. Name the folder of the data set '
                    f'with --data-root FOLDER (now {dataset.get("data_root")!r}), or put or link '
                    'the data there; docs/datasets.md shows the layout')


def revert_sync_bn(cfg: Config) -> None:
    """Make every SyncBN of the model a BN: outside distributed training it cannot run."""
    for node in dicts_in(cfg.get('model')):
        if node.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN'):
            node['type'] = 'BN'


def use_amp(cfg: Config) -> None:
    """Switch to mixed precision.

    Raises:
        ConfigError: there is no GPU, or the optimizer wrapper is a special one.
    """
    import torch
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp works with optim_wrapper.type OptimWrapper, not {kind!r}')
    if not torch.cuda.is_available():
        raise ConfigError('--amp needs a GPU and torch sees none; leave it out')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


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

    Raises:
        ConfigError: the config's model has no backbone.
    """
    if 'backbone' not in cfg.get('model', {}):
        raise ConfigError('--pretrained: the config has no model.backbone to load it into')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)


def use_tta(cfg: Config) -> None:
    """Test with the config's test-time augmentation.

    Raises:
        ConfigError: the config has none.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ConfigError('--tta: the config has no tta_model and tta_pipeline')
    dataset = innermost(cfg.test_dataloader.dataset)
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


def show_pictures(cfg: Config, folder: str | Path) -> None:
    """Have the test draw every prediction into a folder."""
    hook = dict(type='xvit_mm.PicturesHook', max_images=10**9, folder=str(Path(folder).resolve()))
    others = [h for h in cfg.get('custom_hooks', []) if h['type'] != hook['type']]
    cfg.custom_hooks = [*others, hook]


def _read(path: Path) -> Config:
    import xvit_mm
    if not path.is_file():
        if path.parent != Path('.'):
            raise ConfigError(f'config {str(path)!r} does not exist')
        try:
            path = Path(xvit_mm.cfg(path.name))
        except FileNotFoundError as error:
            raise ConfigError(f'config {str(path)!r} does not exist here, and {error}') from None
    try:
        return Config.fromfile(path)
    except (SyntaxError, OSError, KeyError, NameError, TypeError, ValueError) as error:
        kind = type(error).__name__
        raise ConfigError(f'{path} is not a valid config: {kind}: {error}') from error


def _check_option(cfg: Config, name: str) -> None:
    node: Any = cfg
    *parents, leaf = name.split('.')
    for i, key in enumerate(parents):
        known = _entries(node)
        if key not in known:
            raise ConfigError(_no_entry(name, '.'.join(parents[:i]), key, known))
        node = node[int(key)] if isinstance(node, (list, tuple)) else node[key]
    known = _entries(node)
    # What has a type may take any argument of that type, which is checked when it is built.
    open_ended = isinstance(node, Mapping) and 'type' in node and bool(parents)
    if leaf not in known and not open_ended and not (not parents and leaf in _RUNNER_ENTRIES):
        raise ConfigError(_no_entry(name, '.'.join(parents), leaf, known))


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
    if not isinstance(old, str):
        raise ConfigError('--data-root: the config has no data_root that could be replaced')
    new = f'{folder}/'
    for node in dicts_in(cfg._cfg_dict):
        for key, value in node.items():
            if isinstance(value, str) and value.startswith(old):
                node[key] = new + value[len(old):]


def innermost(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data set inside wrappers such as RepeatDataset."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


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
