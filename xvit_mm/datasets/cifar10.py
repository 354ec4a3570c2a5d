"""CIFAR-10, from the official archive or from a folder of images per class."""
from pathlib import Path
from typing import Any

from mmpretrain.datasets import CIFAR10 as OfficialCIFAR10

from xvit_mm.registry import DATASETS

from .images import IMAGE_SUFFIXES, read_image


@DATASETS.register_module()
class CIFAR10(OfficialCIFAR10):
    """mmpretrain's `CIFAR10`, which also reads images that lie in a folder per class.

    If `data_root` holds `train/` and `test/`, their subfolders are the classes and the image files
    in them the images. Otherwise the official batches are read, and downloaded where they are
    missing. Both give RGB images of 32 x 32 x 3 without a file name.

    Raises:
        ValueError: a class has no folder, or an image is damaged.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        folder = Path(self.data_prefix['root'], self.split)
        if not folder.is_dir():
            return super().load_data_list()
        classes = self.metainfo['classes']
        missing = [name for name in classes if not (folder / name).is_dir()]
        if missing:
            raise ValueError(f'{folder} has no folder {missing[0]!r}; it must have one for each of '
                             f'the classes {", ".join(classes)}')
        return [
            dict(img=read_image(path, channel_order='rgb'), gt_label=label)
            for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
