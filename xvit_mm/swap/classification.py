"""Classifiers: the backbone, and in most cases the head that it was published with."""
from typing import Any

from xvit_mm.utils.config import ConfigError

from .backbones import BACKBONES
from .changes import Changes
from .necks import short_name
from .placing import replace_backbone

# Heads whose part the backbone's own head takes over: pooling, one label per image, softmax.
REPLACED_HEADS = (
    'ClsHead', 'ConformerHead', 'CrossFormerClsHead', 'CrossViTClsHead', 'DeiTClsHead',
    'EfficientFormerClsHead', 'LeViTClsHead', 'LinearClsHead', 'StackedLinearClsHead', 'VTClsHead',
    'VigClsHead', 'VisionTransformerClsHead', 'XFormerClsHead',
)
# Heads that do something else, and get the last map: with pooling before them, or as it is.
POOLED_HEADS = ('ArcFaceClsHead', 'MultiLabelLinearClsHead', 'MultiTaskHead')
MAP_HEADS = ('CSRAClsHead',)


def swap_classifier(changes: Changes, ours: dict[str, Any]) -> None:
    """Put a backbone, given as a config, into an image classifier.

    Raises:
        ConfigError: the model is something else, or its head cannot be served.
    """
    if (kind := short_name(changes.get('model'))) != 'ImageClassifier':
        raise ConfigError(
            f'model {kind}: of mmpretrain, only ImageClassifier can be swapped; self-supervised '
            'and multimodal methods are made for their own backbones')
    head = changes.get('model.head')
    name = short_name(head)
    if name in REPLACED_HEADS:
        _own_head(changes, ours, head)
    elif name in POOLED_HEADS + MAP_HEADS:
        _keep_head(changes, ours, pooled=name in POOLED_HEADS)
    elif not head:
        raise ConfigError('the model has no head, so there are no classes to train')
    else:
        raise ConfigError(
            f'head {name}: unknown; if it is for one label per image, add it to REPLACED_HEADS in '
            'xvit_mm/swap/classification.py')


def _own_head(changes: Changes, ours: dict[str, Any], head: dict[str, Any]) -> None:
    num_classes = _num_classes(changes, head)
    entry = BACKBONES[ours['type']]
    module = replace_backbone(changes, {**ours, **entry.cls})
    channels = module.out_channels
    new = dict(
        type=entry.cls_head,
        num_classes=num_classes,
        in_channels=channels if 'CrossViT' in ours['type'] else channels[-1])
    if loss := _scoped_loss(head.get('loss')):
        new['loss'] = loss
    if changes.get('model.neck') is not None:
        changes.set('model.neck', None, 'The head pools by itself.')
    changes.set('model.head', new, (
        f'The head that the backbone was published with, in place of {short_name(head)}. Classes '
        'and loss stay.'))


def _keep_head(changes: Changes, ours: dict[str, Any], *, pooled: bool) -> None:
    module = replace_backbone(changes, {**ours, 'out_indices': (3,)})
    if pooled:
        changes.set('model.neck', dict(type='GlobalAveragePooling'),
                    'The mean over the positions of the last map.')
    changes.set('model.head.in_channels', module.out_channels[-1],
                'The channels of the last map. The head stays, for it does more than one label.')


def _num_classes(changes: Changes, head: dict[str, Any]) -> int:
    places = ('model.backbone.num_classes', 'model.data_preprocessor.num_classes',
              'data_preprocessor.num_classes')
    found = [head.get('num_classes'), *(changes.get(place) for place in places)]
    number = next((n for n in found if isinstance(n, int) and n > 0), None)
    if number is None:
        raise ConfigError(f'head {short_name(head)}: the config does not say how many classes')
    return number


def _scoped_loss(loss: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a loss with its scope: the heads look it up in the xvit_mm registry."""
    if not loss:
        return None
    return {**loss, 'type': loss['type'] if '.' in loss['type'] else f'mmpretrain.{loss["type"]}'}
