"""Checkpoints of the official code, loaded as released and accounted for tensor by tensor."""
from .catalogue import catalogue, find_released, official_classifier, official_model
from .crossformer import CROSSFORMER_NAMES
from .crossvit import CROSSVIT_NAMES
from .errors import CheckpointError
from .loading import LoadReport, find_backbone, load_official, translate
from .names import OfficialNames
from .reading import find_state_dict, read_checkpoint
from .vt_resnet import VT_RESNET_NAMES
from .xformer import XFORMER_NAMES

__all__ = [
    'CROSSFORMER_NAMES', 'CROSSVIT_NAMES', 'CheckpointError', 'LoadReport', 'OfficialNames',
    'VT_RESNET_NAMES', 'XFORMER_NAMES', 'catalogue', 'find_backbone', 'find_released',
    'find_state_dict', 'load_official', 'official_classifier', 'official_model', 'read_checkpoint',
    'translate'
]
