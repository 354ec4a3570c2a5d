"""Vision backbones for OpenMMLab: one class per model for detection, segmentation, classification.

After `import xvit_mm` every class can be named in a config, as `xvit_mm.CrossFormer` or, where no
other package uses the name, as `CrossFormer`. A config that says `xvit_mm.` needs no import at all.
"""
from . import models
from .utils.shipped_configs import find_config

__version__ = '0.1.0'
__all__ = ['cfg', 'models']

def cfg(name: str) -> str:
    """Return the path of a config that ships with this package.

    In a config of your own: `_base_ = [__import__('xvit_mm').cfg('retinanet_crossformer_s_coco')]`.

    Args:
        name: the config's name, or its path relative to `configs/`; with or without `.py`. An old
            name of a renamed config is accepted with a warning.

    Raises:
        FileNotFoundError: no such config; names the ones that come close.
    """
    return str(find_config(name))
