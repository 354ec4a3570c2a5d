"""Predictions of a model of any task for an image."""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Predictions for an image of H x W pixels; None where the task has no such output.

    boxes: [N, 4], x1 y1 x2 y2 in pixels of the image as it was given, with `labels` and `scores`
    [N], best first. masks: [N, H, W] of bool, one for each box. label_map: [H, W] of int, a class
    for each pixel. class_scores: [C], of a classifier.
    """

    boxes: np.ndarray | None = None
    labels: np.ndarray | None = None
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None
    class_scores: np.ndarray | None = None
