"""Configs that mmdet, mmseg and mmpretrain ship, with a small backbone of ours in them."""
import importlib.util
from pathlib import Path

from mmengine.config import Config
from small_models import SMALL

from xvit_mm.swap import swap_backbone


def shipped(config: str) -> Path:
    package, _, rest = config.partition('/')
    root = Path(importlib.util.find_spec(package).origin).parent
    return root / '.mim' / 'configs' / f'{rest}.py'


def small(name: str) -> dict:
    return dict(type=f'xvit_mm.{name}', **SMALL[name])


def swapped(config: str, name: str, folder: Path, *, trial: bool = False) -> Config:
    """The written config, read back."""
    out = folder / 'new.py'
    swap_backbone(shipped(config), small(name), out, trial=trial)
    return Config.fromfile(out)
