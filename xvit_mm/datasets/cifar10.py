"""CIFAR-10, from the official archive or from a folder of images per class."""
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import CIFAR10 as OfficialCIFAR10

from xvit_mm.registry import DATASETS

from .images import IMAGE_SUFFIXES, read_image

CHANNEL_ORDERS = ('rgb', 'bgr')


@DATASETS.register_module()
class CIFAR10(OfficialCIFAR10):
    """mmpretrain's `CIFAR10`, which also reads images sorted into a folder per class.

    If `data_root` holds `train/` and `test/`, their subfolders are the classes and the image files
    in them the images. Otherwise the official batches are read, and downloaded where they are
    missing. Both give images of 32 x 32 x 3 without a file name.

    Args:
        channel_order: `bgr`, the order in which mmpretrain reads image files, also for inference;
            it belongs with a preprocessor that has `to_rgb=True`. `rgb`, the default, is for
            configs saved before this argument existed, whose preprocessor converts nothing.

    Raises:
        ValueError: another channel order, a class without a folder, or a damaged image.
        FileNotFoundError: there are no images, and the official ones cannot be downloaded.
    """

    def __init__(self, *args: Any, channel_order: str = 'rgb', **kwargs: Any) -> None:
        if channel_order not in CHANNEL_ORDERS:
            raise ValueError(f'channel_order={channel_order!r}: choose from '
                             f'{", ".join(map(repr, CHANNEL_ORDERS))}')
        self.channel_order = channel_order
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        folder = Path(self.data_prefix['root'], self.split)
        if folder.is_dir():
            return self._load_folders(folder)
        try:
            images = super().load_data_list()  # RGB
        except OSError as error:
            raise FileNotFoundError(
                f'{folder.parent} holds neither train/ and test/ with a folder per class nor the '
                f'official batches, and these cannot be downloaded: {error}') from error
        if self.channel_order == 'bgr':
            for image in images:
                image['img'] = np.ascontiguousarray(image['img'][..., ::-1])
        return images

    def _load_folders(self, folder: Path) -> list[dict[str, Any]]:
        classes = self.metainfo['classes']
        missing = [name for name in classes if not (folder / name).is_dir()]
        if missing:
            raise ValueError(f'{folder} has no folder {missing[0]!r}; it must have one for each of '
                             f'the classes {", ".join(classes)}')
        return [
            dict(img=read_image(path, channel_order=self.channel_order), gt_label=label)
            for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
