"""Hooks: a progress bar, curves, pictures of predictions, and the memory order of weights."""
from .channels_last import ChannelsLastHook
from .curves import CurvesHook
from .pictures import PicturesHook
from .progress_bar import ProgressBarHook, close_progress_bar

__all__ = [
    'ChannelsLastHook', 'CurvesHook', 'PicturesHook', 'ProgressBarHook', 'close_progress_bar']
