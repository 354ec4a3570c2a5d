"""From a config file and command-line options to a config ready to run, or to a clear error."""
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config

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
