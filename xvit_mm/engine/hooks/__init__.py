"""Hooks: checkpoints, progress bar, curves, pictures, sizes of batches, faster inference."""
from .channels_last import ChannelsLastHook
from .checkpoint import CheckpointHook
from .compile import CompileHook
from .curves import CurvesHook
from .fast_inference import FastInferenceHook, prepare_for_inference
from .finite_loss import DivergedError, FiniteLossHook
from .multi_scale import MultiScaleHook
from .pictures import PicturesHook
from .progress_bar import ProgressBarHook, close_progress_bar

__all__ = [
    'ChannelsLastHook', 'CheckpointHook', 'CompileHook', 'CurvesHook', 'DivergedError',
    'FastInferenceHook', 'FiniteLossHook', 'MultiScaleHook', 'PicturesHook', 'ProgressBarHook',
    'close_progress_bar', 'prepare_for_inference'
]
