"""Data samples of mmdet, mmseg and mmpretrain at the size of a picture."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from mmengine.structures import BaseDataElement, InstanceData

Shape = tuple[int, int]  # height, width in pixels
Sample = TypeVar('Sample', bound=BaseDataElement)


def rescale_sample(
    sample: Sample,
    image_shape: Shape,
    picture_shape: Shape,
    transforms: Sequence[object] = (),
) -> Sample:
    """Ground truth and prediction of `sample`, drawn at `picture_shape`, on the CPU.

    Predictions come at the size of the image. Ground truth does too where the pipeline loads it
    after resizing the image, as OpenMMLab's test pipelines do; otherwise it comes at the size of
    the model's input. Masks and maps tell by their size, boxes only by the order of `transforms`.

    Args:
        transforms: transforms of the test pipeline.
    """
    scaled = type(sample)(metainfo=sample.metainfo)
    if 'pred_instances' in sample:
        scaled.pred_instances = _rescale_instances(
            sample.pred_instances, image_shape, picture_shape)
        if 'gt_instances' in sample:
            shape = _ground_truth_shape(sample, image_shape, transforms)
            scaled.gt_instances = _rescale_instances(sample.gt_instances, shape, picture_shape)
    elif 'pred_sem_seg' in sample:
        input_shape = _input_shape(sample, image_shape)
        for name in ('gt_sem_seg', 'pred_sem_seg'):
            if name in sample:
                scaled.set_field(
                    _rescale_maps(sample.get(name), image_shape, input_shape, picture_shape), name)
    else:
        return sample.cpu()
    return scaled


def _input_shape(sample: BaseDataElement, image_shape: Shape) -> Shape:
    """Size of the resized image, without padding."""
    scale_x, scale_y = sample.metainfo.get('scale_factor', (1, 1))
    return round(image_shape[0] * scale_y), round(image_shape[1] * scale_x)


def _ground_truth_shape(
    sample: BaseDataElement,
    image_shape: Shape,
    transforms: Sequence[object],
) -> Shape:
    """Size of the image that the ground truth of a detection sample belongs to."""
    masks = sample.gt_instances.get('masks')
    if masks is None:
        is_resized = _loads_annotations_before_resize(transforms)
    else:
        is_resized = (masks.height, masks.width) != tuple(image_shape)
    return _input_shape(sample, image_shape) if is_resized else image_shape


def _loads_annotations_before_resize(transforms: Sequence[object]) -> bool:
    names = [type(transform).__name__ for transform in transforms]
    loads = [index for index, name in enumerate(names) if 'Load' in name and 'Annotations' in name]
    resizes = [index for index, name in enumerate(names) if 'Resize' in name]
    return bool(loads and resizes) and loads[0] < resizes[-1]


def _rescale_instances(instances: InstanceData, shape: Shape, picture_shape: Shape) -> InstanceData:
    """Boxes, masks, labels and scores that belong to an image of size `shape`."""
    scaled = InstanceData()
    if 'bboxes' in instances:
        boxes = getattr(instances.bboxes, 'tensor', instances.bboxes).cpu().float()
        scale_y, scale_x = (new / old for new, old in zip(picture_shape, shape))
        boxes = boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        # A box beyond the picture would make the visualizer's canvas grow.
        height, width = picture_shape
        scaled.bboxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width - 1, height - 1] * 2))
    if 'masks' in instances:
        scaled.masks = _resample(_mask_tensor(instances.masks), shape, picture_shape)
    for name in ('labels', 'scores'):
        if name in instances:
            scaled.set_field(instances.get(name).cpu(), name)
    return scaled


def _mask_tensor(masks: object) -> torch.Tensor:
    """`[N, H, W]` bool from a tensor or mmdet's mask structures."""
    if isinstance(masks, torch.Tensor):
        return masks.cpu().bool()
    return torch.from_numpy(masks.to_ndarray()).bool()


def _rescale_maps(
    maps: BaseDataElement,
    image_shape: Shape,
    input_shape: Shape,
    picture_shape: Shape,
) -> BaseDataElement:
    """Label maps `[1, H, W]` of a `PixelData`, of the image's or the (padded) input's size."""
    scaled = type(maps)(metainfo=maps.metainfo)
    for name, labels in maps.items():
        is_image_size = tuple(labels.shape[-2:]) == tuple(image_shape)
        shape = image_shape if is_image_size else input_shape
        scaled.set_field(_resample(labels.cpu(), shape, picture_shape), name)
    return scaled


def _resample(values: torch.Tensor, shape: Shape, picture_shape: Shape) -> torch.Tensor:
    """Nearest pixels of the upper left part of size `shape` of `[..., H, W]`, of any type."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * old / new).long().clamp(max=limit - 1)
        for new, old, limit in zip(picture_shape, shape, values.shape[-2:]))
    return values[..., rows[:, None], columns]
