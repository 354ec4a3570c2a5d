"""The files that the authors of the models released, by name."""
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from .download import check_hash, download, download_from_drive
from .errors import CheckpointError

SCHEME = 'official'
_FILE = Path(__file__).with_name('weights.yml')
# Backbones of which no file was released, and what they start from.
_STARTS = {'VTResNet': 'torchvision://resnet'}


@dataclass(frozen=True)
class Released:
    """A file of the catalogue, `weights.yml`, which describes the entries."""

    name: str
    paper: Mapping[str, float] = field(default_factory=dict)
    backbone: str = ''
    arch: str = ''
    config: str = ''
    url: str = ''
    drive: str = ''
    share: str = ''
    key: str = ''
    sha256: str | None = None

    @property
    def address(self) -> str:
        return f'{SCHEME}://{self.name}'

    @property
    def path(self) -> Path:
        """Where the file is kept, in torch's cache."""
        return Path(torch.hub.get_dir(), 'checkpoints', f'{self.name}.pth')

    def fetch(self) -> Path:
        """The file, downloaded unless it is there, and compared with what it was before.

        Raises:
            CheckpointError: it cannot be downloaded, only a person can do it, or it has changed.
        """
        if not self.path.is_file():
            if self.share:
                raise CheckpointError(
                    f'{self.address} can only be fetched by a person: open {self.share} (key '
                    f'{self.key}) and put the file at {self.path}')
            if self.drive:
                download_from_drive(self.drive, self.path)
            else:
                download(self.url, self.path)
        check_hash(self.path, self.sha256)
        return self.path


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, Released]:
    """Every released file, by name."""
    entries = yaml.safe_load(_FILE.read_text(encoding='utf-8'))
    return {name: Released(name, **entry) for name, entry in entries.items()}


def find_released(name: str) -> Released:
    """The file of a name.

    Raises:
        CheckpointError: there is none; says which come close.
    """
    names = catalogue()
    if name not in names:
        close = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f'did you mean {", ".join(close)}?' if close else f'there are {", ".join(names)}'
        raise CheckpointError(f'{SCHEME}://{name} is not in the catalogue of weights; {hint}')
    return names[name]


def official_classifier(backbone: Mapping[str, Any]) -> str:
    """The address of the weights that a backbone starts from.

    Args:
        backbone: its part of a config, with `type` and what says its variant.

    Raises:
        CheckpointError: nobody has released weights for this backbone or variant.
    """
    kind = _type_name(backbone)
    variant = {**_defaults(kind), **backbone}
    if kind in _STARTS:
        depth = str(variant.get('depth') or variant.get('arch')).removeprefix('r')
        if not depth.isdigit():
            raise CheckpointError(
                f'official: {kind} starts from weights of torchvision, which has none of '
                f'arch={variant.get("arch")!r}; it has those of r18, r34, r50 and r101')
        return _STARTS[kind] + depth
    known = [released for released in catalogue().values() if released.backbone == kind]
    for released in known:
        if released.arch == str(variant.get('arch')):
            return released.address
    if not known:
        raise CheckpointError(
            f'official: no weights of {kind or "a backbone without a type"} are released; there '
            f'are some of {", ".join(sorted({r.backbone for r in catalogue().values()} - {""}))}')
    raise CheckpointError(
        f'official: no weights of {kind} with arch={variant.get("arch")!r} are released; there are '
        f'{", ".join(repr(released.arch) for released in known)}')


def official_model(cfg: Any) -> str:
    """The address of the weights of a config's whole model: that of the authors.

    Args:
        cfg: an mmengine `Config`; a detector or segmentor is known by the name of its file.

    Raises:
        CheckpointError: nobody has released weights for it.
    """
    name = Path(cfg.filename or '').stem
    for released in catalogue().values():
        if released.config and released.config == name:
            return released.address
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if (str(model.get('type', '')).endswith('ImageClassifier')
            and _type_name(backbone) not in _STARTS):
        return official_classifier(backbone)
    configs = ', '.join(released.config for released in catalogue().values() if released.config)
    raise CheckpointError(
        f'official: no weights of the whole model {name!r} are released; there are those of '
        f'{configs}. Weights for only the backbone go with tools/train.py --pretrained official')


def _type_name(settings: Mapping[str, Any]) -> str:
    kind = settings.get('type') or ''
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__


def _defaults(kind: str) -> dict[str, Any]:
    """The default arguments of a backbone of this package."""
    from xvit_mm.registry import MODELS
    backbone = MODELS.get(f'xvit_mm.{kind}') if kind else None
    if backbone is None:
        return {}
    parameters = inspect.signature(backbone).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
