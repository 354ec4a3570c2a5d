"""What the swap knows of each backbone: arguments, recipes, classification heads."""
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xvit_mm.registry import MODELS
from xvit_mm.utils.config import ConfigError


@dataclass(frozen=True)
class Recipe:
    """AdamW's learning rate for a batch of `batch` images, weight decay, and where they are from.

    `source` completes "learning rate and weight decay of ...".
    """

    lr: float
    weight_decay: float
    batch: int
    source: str


@dataclass(frozen=True)
class Entry:
    """A backbone of this package."""

    # Beginnings of variant names, and arguments that their dense models differ by.
    dense: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    # Parts of the names of parameters that, although they are not one-dimensional, do not decay.
    no_decay: tuple[str, ...] = ()
    # For classification: what the head needs of the backbone, and the head.
    cls: Mapping[str, Any] = field(default_factory=dict)
    cls_head: str = ''
    # By framework, or by framework and type of the head where that has a recipe of its own.
    recipes: Mapping[str, Recipe] = field(default_factory=dict)


_SWIN = {
    'mmdet': Recipe(1e-4, 0.05, 16, 'the nearest published relative, Swin on COCO'),
    'mmseg': Recipe(6e-5, 0.01, 16, 'the nearest published relative, Swin on ADE20K'),
}
BACKBONES = {
    'xvit_mm.CrossFormer': Entry(
        dense={'pp_': dict(group_size=(7, 7, 7, 7), interval=(8, 4, 2, 1))},
        cls=dict(out_indices=(3,)),
        cls_head='xvit_mm.CrossFormerClsHead',
        recipes={
            'mmdet': Recipe(1e-4, 1e-4, 16, 'the CrossFormer repository on COCO'),
            'mmseg': Recipe(6e-5, 0.01, 16, 'the CrossFormer repository, UPerNet on ADE20K'),
            'mmseg FPNHead': Recipe(
                1e-4, 1e-4, 16, 'the CrossFormer repository, semantic FPN on ADE20K'),
            'mmpretrain': Recipe(1e-3, 0.05, 1024, 'the CrossFormer repository on ImageNet'),
        }),
    'xvit_mm.CrossViT': Entry(
        no_decay=('cls_token', 'pos_embed'),
        cls=dict(out_type='cls_token'),
        cls_head='xvit_mm.CrossViTClsHead',
        recipes={
            **_SWIN,
            'mmpretrain': Recipe(4e-3, 0.1, 4096, 'the CrossViT paper on ImageNet'),
        }),
    'xvit_mm.XFormer': Entry(
        cls=dict(out_indices=(3,)),
        cls_head='xvit_mm.XFormerClsHead',
        recipes={
            **_SWIN,
            'mmpretrain': Recipe(
                2e-3, 0.01, 1024, 'the nearest published relative, MobileViT on ImageNet'),
        }),
    'xvit_mm.VTResNet': Entry(
        cls=dict(out_indices=(3,), out_type='tokens'),
        cls_head='xvit_mm.VTClsHead',
        recipes={
            'mmdet': Recipe(1e-4, 0.05, 16, 'ResNet with AdamW on COCO, as mmdet has it'),
            'mmseg': _SWIN['mmseg'],
            'mmpretrain': Recipe(1e-3, 0.05, 1024, 'the nearest relative with AdamW, CrossFormer'),
        }),
}


def complete_backbone(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone's config with its scoped name and its variant, by default the class's.

    Raises:
        ConfigError: it is none of this package.
    """
    name = str(backbone.get('type', ''))
    scoped = name if '.' in name else f'xvit_mm.{name}'
    if scoped not in BACKBONES:
        raise ConfigError(f'--backbone {name}: choose from {", ".join(BACKBONES)}')
    # VTResNet may have its variant by the name that a ResNet gives it.
    if 'depth' in backbone:
        return {**backbone, 'type': scoped}
    return {**backbone, 'type': scoped,
            'arch': backbone.get('arch', MODELS.get(scoped).default_arch)}


def dense_arguments(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by which released dense models differ from their classifier."""
    entry = BACKBONES[backbone['type']]
    for beginning, arguments in entry.dense.items():
        if str(backbone.get('arch', '')).startswith(beginning):
            return {key: value for key, value in arguments.items() if key not in backbone}
    return {}


def recipe_for(kind: str, scope: str, head: str | None) -> Recipe:
    """Return the recipe of a framework, or of a head type that has its own."""
    recipes = BACKBONES[kind].recipes
    # Rotated detectors are trained as others are.
    framework = 'mmdet' if scope == 'mmrotate' else scope
    return recipes.get(f'{framework} {head}', recipes[framework])
