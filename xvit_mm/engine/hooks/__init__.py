"""Hooks: checkpoints, a progress bar, curves, pictures of predictions, memory order of weights."""
from .channels_last import ChannelsLastHook
from .checkpoint import CheckpointHook
from .curves import CurvesHook
from .pictures import PicturesHook
from .progress_bar import ProgressBarHook, close_progress_bar

__all__ = [
    'ChannelsLastHook', 'CheckpointHook', 'CurvesHook', 'PicturesHook', 'ProgressBarHook',
    'close_progress_bar'
]
