"""Train the detector, segmentor or classifier of any config on a folder of your own."""
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from xvit_mm.utils.config import ConfigError

from .classification import use_class_folders
from .detection import use_coco_folder
from .segmentation import use_label_maps

__all__ = ['use_own_data']


def use_own_data(
    cfg: Config,
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    ignore_index: int | None = None,
) -> None:
    """Point data sets, metric and heads of a config at a folder; the recipe stays as it is.

    What is expected in the folder depends on the framework of the config (`default_scope`):

    - mmdet: annotations in COCO's format, a file each for training and validation, and the images.
    - mmseg: images and index images of the same names, each in a folder `train` and `val`.
    - mmpretrain: a folder for each class in `train` and in `val`.

    Args:
        cfg: changed in place.
        folder: the data.
        classes: names of the classes, for segmentation; default: the lines of `classes.txt`.
        ignore_index: the value that means "not labelled", for segmentation; default 255.

    Raises:
        ConfigError: something is missing or contradicts; the config may be changed by then.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f'--own-data {str(folder)!r} is not a folder')
    scope = cfg.get('default_scope')
    if scope != 'mmseg' and (classes or ignore_index is not None):
        raise ConfigError('--classes and --ignore-index are for segmentation; here the folder says '
                          'what the classes are')
    if scope == 'mmdet':
        use_coco_folder(cfg, folder)
    elif scope == 'mmseg':
        use_label_maps(cfg, folder, classes, 255 if ignore_index is None else ignore_index)
    elif scope == 'mmpretrain':
        use_class_folders(cfg, folder)
    else:
        raise ConfigError(f'--own-data: the config has default_scope={scope!r}; it works with '
                          'mmdet, mmseg and mmpretrain')
    cfg.data_root = f'{folder}/'
