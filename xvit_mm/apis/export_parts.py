"""Modules that compute what is exported of a model: images in, a tuple of tensors out."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.images import image_channels

PARTS = ('backbone', 'raw', 'all')


def part_of(model: nn.Module, part: str) -> tuple[nn.Module, list[str]]:
    """A part of a model of mmdet, mmseg or mmpretrain, and the names of its outputs.

    Raises:
        ConfigError: the model has no such part.
    """
    if part == 'backbone':
        module: nn.Module = Backbone(model)
    elif hasattr(model, 'decode_head'):
        module = Segmentor(model, resize=part == 'all')
    elif hasattr(model, 'bbox_head'):
        module = _detector(model, part)
    elif hasattr(model, 'rpn_head') and part == 'raw':
        module = Raw(model, 'rpn_head')
    elif hasattr(model, 'head'):
        module = Classifier(model, softmax=part == 'all')
    else:
        raise ConfigError(
            f'--part {part} does not exist of a {type(model).__name__}: its second stage works on '
            'regions, not on images. Choose backbone, or raw for the outputs of its RPN')
    return module, module.output_names()


class Part(nn.Module):
    """A module that holds the whole model, from images [B, 3, H, W] to a tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return self._names(self(self._black_image()))

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        raise NotImplementedError

    def _black_image(self) -> Tensor:
        return torch.zeros(1, image_channels(self), 64, 64)


class Backbone(Part):
    """The maps [B, C, H', W'] of the backbone, high to low resolution."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model.backbone(images)
        flat = []
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            flat += output if isinstance(output, (tuple, list)) else (output,)
        return tuple(flat)

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        return [f'map{i}' for i in range(len(outputs))]


class Classifier(Part):
    """Scores [B, classes] of images, or what goes into the softmax."""

    def __init__(self, model: nn.Module, *, softmax: bool) -> None:
        super().__init__(model)
        self.softmax = softmax

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.model(images, mode='tensor')
        return (logits.softmax(1) if self.softmax else logits,)

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        return ['scores' if self.softmax else 'logits']


class Segmentor(Part):
    """Logits [B, classes, H', W'] of pixels, of the head or at the size of the images."""

    def __init__(self, model: nn.Module, *, resize: bool) -> None:
        super().__init__(model)
        self.resize = resize

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.model.decode_head(self.model.extract_feat(images))
        if self.resize:
            logits = F.interpolate(
                logits, images.shape[2:], mode='bilinear',
                align_corners=self.model.decode_head.align_corners)
        return (logits,)

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        return ['logits']


class Raw(Part):
    """What a detector's head says: each of its outputs, level by level."""

    def __init__(self, model: nn.Module, head: str = 'bbox_head') -> None:
        super().__init__(model)
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = getattr(self.model, self.head)(self.model.extract_feat(images))
        return tuple(level for levels in outputs for level in levels)

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        maps = self.model.extract_feat(self._black_image())
        levels = len(maps)
        kinds = len(outputs) // levels
        names = ['classes', 'boxes'] if kinds == 2 else [f'output{i}' for i in range(kinds)]
        return [f'{name}_level{level}' for name in names for level in range(levels)]


class RetinaNetBoxes(Part):
    """Boxes [B, N, 4], x1 y1 x2 y2 in pixels, and scores [B, N, classes], before NMS."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.bbox_head
        classes, deltas = head(self.model.extract_feat(images))
        anchors = torch.cat(head.prior_generator.grid_priors(
            [level.shape[-2:] for level in classes], dtype=images.dtype, device=images.device))
        scores = _flat(classes, head.cls_out_channels).sigmoid()
        deltas = _flat(deltas, 4)
        anchors = anchors.expand_as(deltas)
        boxes = head.bbox_coder.decode(anchors.reshape(-1, 4), deltas.reshape(-1, 4))
        return boxes.reshape(images.shape[0], -1, 4), scores

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        return ['boxes', 'scores']


class YOLOv3Boxes(Part):
    """Boxes [B, N, 4], x1 y1 x2 y2 in pixels, and scores [B, N, classes], before NMS.

    A score is the probability of the class times that of an object, as for the NMS.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.bbox_head
        levels, = head(self.model.extract_feat(images))
        priors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in levels], device=images.device)
        boxes, scores = [], []
        for level, prior, stride in zip(levels, priors, head.featmap_strides):
            flat = _flat([level], head.num_attrib)
            xywh = torch.cat([flat[..., :2].sigmoid(), flat[..., 2:4]], dim=-1)
            boxes.append(head.bbox_coder.decode(prior.expand_as(xywh), xywh, stride))
            scores.append(flat[..., 5:].sigmoid() * flat[..., 4:5].sigmoid())
        return torch.cat(boxes, 1), torch.cat(scores, 1)

    def _names(self, outputs: tuple[Tensor, ...]) -> list[str]:
        return ['boxes', 'scores']


def _detector(model: nn.Module, part: str) -> Part:
    if part == 'raw':
        return Raw(model)
    kind, coder = type(model.bbox_head).__name__, type(model.bbox_head.bbox_coder).__name__
    decoders: dict[tuple[str, str], Any] = {
        ('RetinaHead', 'DeltaXYWHBBoxCoder'): RetinaNetBoxes,
        ('YOLOV3Head', 'YOLOBBoxCoder'): YOLOv3Boxes,
    }
    if (kind, coder) not in decoders:
        raise ConfigError(
            f'--part all decodes the boxes of RetinaNet and YOLOv3, not those of {kind} with '
            f'{coder}: choose raw, and decode them yourself, or backbone')
    return decoders[kind, coder](model)


def _flat(levels: list[Tensor], channels: int) -> Tensor:
    """Outputs [B, A * channels, H, W] of all levels as [B, N, channels]."""
    # Not by unflatten, which the tracer makes constant.
    return torch.cat(
        [level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels) for level in levels], 1)
