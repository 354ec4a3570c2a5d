"""Hooks: checkpoints, progress bar, curves, pictures, sizes of batches, memory order of weights."""
from .channels_last import ChannelsLastHook
from .checkpoint import CheckpointHook
from .curves import CurvesHook
from .fast_inference import FastInferenceHook, prepare_for_inference
from .finite_loss import DivergedError, FiniteLossHook
from .multi_scale import MultiScaleHook
from .pictures import PicturesHook
from .progress_bar import ProgressBarHook, close_progress_bar

__all__ = [
    'ChannelsLastHook', 'CheckpointHook', 'CurvesHook', 'DivergedError', 'FastInferenceHook',
    'FiniteLossHook', 'MultiScaleHook', 'PicturesHook', 'ProgressBarHook', 'close_progress_bar',
    'prepare_for_inference'
]
