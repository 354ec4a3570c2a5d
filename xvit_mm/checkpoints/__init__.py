"""Checkpoints of the official code, loaded as released and accounted for tensor by tensor."""
from .catalogue import catalogue, find_released, official_classifier, official_model
from .checks import check_kinds, check_values
from .crossformer import CROSSFORMER_NAMES
from .crossvit import CROSSVIT_NAMES
from .errors import CheckpointError
from .loading import (LoadReport, NoBackbone, SeveralBackbones, find_backbones, load_official,
                      load_tensors, translate)
from .names import OfficialNames
from .reading import find_state_dict, read_checkpoint
from .vt_resnet import VT_RESNET_NAMES
from .xformer import XFORMER_NAMES

__all__ = [
    'CROSSFORMER_NAMES', 'CROSSVIT_NAMES', 'CheckpointError', 'LoadReport', 'NoBackbone',
    'OfficialNames', 'SeveralBackbones', 'VT_RESNET_NAMES', 'XFORMER_NAMES', 'catalogue',
    'check_kinds', 'check_values', 'find_backbones', 'find_released', 'find_state_dict',
    'load_official', 'load_tensors', 'official_classifier', 'official_model', 'read_checkpoint',
    'translate'
]
