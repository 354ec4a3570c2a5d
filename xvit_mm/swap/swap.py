"""Swap the backbone of a config: check, change, try and write."""
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from xvit_mm.utils.config import ConfigError, load_config
from xvit_mm.utils.frameworks import FRAMEWORKS, check_installed

from .backbones import complete_backbone
from .changes import Changes
from .classification import swap_classifier
from .dense import swap_dense
from .maps import build
from .necks import short_name
from .optimizer import swap_optimizer
from .placing import use_checkpoint
from .preprocessing import swap_colours
from .trial import Trial, model_config, try_model
from .writing import config_text

_WHOLE_NETWORK = 'this backbone is nearly the whole network, and its heads are made for its maps'
REFUSED_BACKBONES = dict.fromkeys(
    ('BiSeNetV1', 'BiSeNetV2', 'CGNet', 'DDRNet', 'ERFNet', 'FastSCNN', 'HourglassNet', 'ICNet',
     'PIDNet', 'STDCContextPathNet', 'UNet'), _WHOLE_NETWORK
) | {
    'DetectoRS_ResNet': 'its neck feeds it a second input',
    'TridentResNet': 'its three branches are the method',
}


@dataclass(frozen=True)
class Swap:
    """A written config and the outcome of its trial (None without one)."""

    path: Path
    old: str
    new: str
    trial: Trial | None


def swap_backbone(
    config: str | Path,
    backbone: Mapping[str, Any],
    out: str | Path,
    *,
    checkpoint: str | None = None,
    keep_optimizer: bool = False,
    force: bool = False,
    trial: bool = True,
) -> Swap:
    """Write a config that inherits from `config` and has another backbone.

    Args:
        config: of mmdet, mmseg, mmpretrain or mmrotate.
        backbone: one of this package, as in a config: `dict(type='xvit_mm.CrossFormer', arch='s')`.
        out: where to write, a `.py` file.
        checkpoint: weights for the backbone.
        keep_optimizer: leave optimizer and schedule as they are.
        force: overwrite `out`.
        trial: take the new model through a training step and a prediction before writing.

    Raises:
        ConfigError: it cannot be done; nothing has been written.
        CheckpointError: `checkpoint` does not fit the backbone; nothing has been written.
    """
    config, out = Path(config), Path(out)
    _check_out(config, out, force)
    checkpoint = _check_checkpoint(checkpoint)
    ours = complete_backbone(backbone)
    _check_inheritable(config)
    cfg = load_config(config)
    changes, scope = Changes(cfg), _scope_of(cfg)
    _check_model(changes)
    old = changes.get('model.backbone.type')
    (swap_classifier(changes, ours) if scope == 'mmpretrain' else
     swap_dense(changes, scope, ours))
    use_checkpoint(changes, checkpoint)
    swap_colours(changes, scope)
    if not keep_optimizer:
        swap_optimizer(
            changes, scope, lambda: build(model_config(Config(changes.new)), scope))
    header = (
        f'{_title(cfg)} with {ours["type"]} in place of {old}, from '
        f'{Path(cfg.filename).name}, by tools/swap_backbone.py. Wherever it runs, the package '
        'xvit_mm must be installed.')
    text = config_text(header, _base_of(Path(cfg.filename), out), changes.tree())
    return Swap(out, old, ours['type'], _write(text, out, changes, scope, trial))


def _write(
    text: str, out: Path, changes: Changes, scope: str, trial: bool
) -> Trial | None:
    """Write the text once it is known to give the intended config and the trial has passed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the path of the base holds.
    handle, name = tempfile.mkstemp('.py', f'{out.stem}_', out.parent)
    try:
        with open(handle, 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(name, 0o644)
        written = Config.fromfile(name)
        if written.to_dict() != Config(changes.new).to_dict():
            raise ConfigError(
                'the config holds values that cannot be written as Python literals; dump it with '
                "mmengine's Config.dump, and swap the backbone of that")
        outcome = try_model(written, scope) if trial else None
        os.replace(name, out)
    finally:
        Path(name).unlink(missing_ok=True)
    return outcome


def _check_out(config: Path, out: Path, force: bool) -> None:
    if out.suffix != '.py':
        raise ConfigError(f'--out {str(out)!r}: the name must end in .py')
    if out.resolve() == config.resolve():
        raise ConfigError(f'--out {str(out)!r} is the config itself, from which it would inherit')
    if out.exists() and not force:
        raise ConfigError(f'--out {str(out)!r} exists; --force overwrites it')


def _check_checkpoint(checkpoint: str | None) -> str | None:
    if checkpoint is None or '://' in checkpoint:
        return checkpoint
    if not Path(checkpoint).is_file():
        raise ConfigError(f'--checkpoint {checkpoint!r} does not exist')
    return str(Path(checkpoint).resolve())


def _check_inheritable(config: Path) -> None:
    if config.is_file() and config.suffix == '.py' and Config._is_lazy_import(str(config)):
        raise ConfigError(
            f"{config} is a pure Python config, from which a text config cannot inherit. Dump it "
            "first: python -c \"from mmengine import Config; "
            f"Config.fromfile('{config}').dump('flat.py')\"")


def _scope_of(cfg: Config) -> str:
    model = cfg.get('model')
    kind = str(model.get('type', '')) if isinstance(model, dict) else ''
    scope = cfg.get('default_scope') or kind.partition('.')[0]
    if scope not in FRAMEWORKS:
        raise ConfigError(
            f'default_scope={cfg.get("default_scope")!r}: the config must be one of '
            f'{", ".join(FRAMEWORKS)} (2.x style, with a default_scope)')
    check_installed(scope)
    return scope


def _check_model(changes: Changes) -> None:
    model = changes.get('model')
    if not isinstance(model, dict):
        raise ConfigError('the config has no model')
    if not isinstance(model.get('backbone'), dict) or 'type' not in model['backbone']:
        raise ConfigError(
            f'model {model.get("type")} has no model.backbone; where the backbone lies deeper '
            '(trackers, semi-supervised and multimodal models), swap that of the inner config')
    if others := sorted(place for place in _backbones(model, '') if place != 'backbone'):
        raise ConfigError(
            f'model {model.get("type")} has more than one backbone ({", ".join(others)} beside '
            'model.backbone); which to replace, and what the other then means, is not clear')
    if teachers := sorted(key for key in model if key.startswith('teacher')):
        raise ConfigError(
            f'model {model.get("type")} learns from a teacher ({", ".join(teachers)}) that is made '
            'for the backbone it has')
    if (name := short_name(model['backbone'])) in REFUSED_BACKBONES:
        raise ConfigError(f'backbone {name}: {REFUSED_BACKBONES[name]}')


def _backbones(node: Any, place: str) -> list[str]:
    """Places of the dicts under a key that ends in `backbone`."""
    children = node.items() if isinstance(node, dict) else \
        enumerate(node) if isinstance(node, (list, tuple)) else ()
    found = []
    for key, child in children:
        here = f'{place}.{key}'.removeprefix('.')
        if str(key).endswith('backbone') and isinstance(child, dict) and 'type' in child:
            found.append(here)
        found += _backbones(child, here)
    return found


def _title(cfg: Config) -> str:
    return str(cfg.model.get('type', 'Model')).rpartition('.')[2]


def _base_of(config: Path, out: Path) -> str:
    """Return the path to inherit from: relative within one tree, so that the tree can be moved."""
    config, folder = config.resolve(), out.resolve().parent
    if Path(os.path.commonpath([config, folder])) == Path(config.anchor):
        return str(config)
    return Path(os.path.relpath(config, folder)).as_posix()
