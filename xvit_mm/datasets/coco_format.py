"""Binary masks to COCO annotations."""
import numpy as np


def coco_annotation(
    mask: np.ndarray,
    *,
    annotation_id: int,
    image_id: int,
    category_id: int,
) -> dict:
    """Return an entry of COCO's `annotations` list for the visible part of an object.

    The mask is stored run-length encoded, so that it is read back exactly, holes included.

    Args:
        mask: `[H, W]` bool, with at least one pixel set.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError(f'annotation {annotation_id} of image {image_id} has an empty mask; '
                         'leave out objects without visible pixels')
    # Only here: it comes with mmdet, and the package works without.
    from pycocotools import mask as mask_utils
    encoded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': category_id,
        'segmentation': {**encoded, 'counts': encoded['counts'].decode()},
        'area': int(mask_utils.area(encoded)),
        'bbox': mask_utils.toBbox(encoded).tolist(),
        'iscrowd': 0,
    }
