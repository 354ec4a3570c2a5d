"""Hooks that show a run: a progress bar, curves, and pictures of predictions."""
from .curves import CurvesHook
from .pictures import PicturesHook
from .progress_bar import ProgressBarHook, close_progress_bar

__all__ = ['CurvesHook', 'PicturesHook', 'ProgressBarHook', 'close_progress_bar']
