"""Predictions as files that other programs read: COCO's JSON, label images, CSV."""
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xvit_mm.utils.files import replaced_whole, write_text
from xvit_mm.utils.prediction import Prediction

NUM_BEST = 5  # classes of an image that the CSV lists
LABELS = 'labels'  # folder of the label images


class PredictionFiles:
    """Collects predictions and writes them below a folder.

    - Boxes and instances: `predictions.json`, in COCO's format with scores; a category's id is the
      label of the class plus 1, masks are run-length encoded.
    - Classes of pixels: `labels/NAME.png` with a label for each pixel, 255 for classes that were
      not asked for (65535 in 16 bits if the model has more than 255 classes), and the names of
      the classes in `labels/classes.txt`.
    - Classes of images: `predictions.csv`, the best five of each image.

    Files appear complete: JSON and CSV with `close`.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self.folder = folder
        self.classes = classes
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.rows: list[list[Any]] = []
        self.has_boxes = self.has_labels = False

    def add(self, name: str, path: str, size: tuple[int, int], prediction: Prediction) -> None:
        """Add the prediction for an image.

        Args:
            name: of files for this image, may have folders in it.
            path: of the image or, with the number of the frame, of the video.
            size: height and width.
            prediction: what the model says.
        """
        if prediction.label_map is not None:
            self._write_labels(name, prediction.label_map)
        elif prediction.class_scores is not None:
            scores = prediction.class_scores
            best = [i for i in np.argsort(-scores)[:NUM_BEST] if np.isfinite(scores[i])]
            self.rows += [[path, rank, i, self.classes[i], f'{scores[i]:.6f}']
                          for rank, i in enumerate(best, start=1)]
        else:
            self.has_boxes = True
            self.images.append(dict(
                id=len(self.images) + 1, file_name=path, height=size[0], width=size[1]))
            self.annotations += self._annotations(prediction)

    def close(self) -> list[Path]:
        """Write what has been collected; returns the files that hold all predictions."""
        if self.has_boxes:
            categories = [dict(id=i, name=name) for i, name in enumerate(self.classes, start=1)]
            contents = dict(
                images=self.images, annotations=self.annotations, categories=categories)
            write_text(self.folder / 'predictions.json', json.dumps(contents))
            return [self.folder / 'predictions.json']
        if self.has_labels:
            names = ''.join(f'{name}\n' for name in self.classes)
            write_text(self.folder / LABELS / 'classes.txt', names)
            return [self.folder / LABELS]
        if self.rows:
            path = self.folder / 'predictions.csv'
            with replaced_whole(path) as partial, \
                    partial.open(
                        'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
                csv.writer(file).writerows(
                    [['file', 'rank', 'label', 'class', 'score'], *self.rows])
            return [path]
        return []

    def _write_labels(self, name: str, label_map: np.ndarray) -> None:
        self.has_labels = True
        path = self.folder / LABELS / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        depth = np.uint8 if len(self.classes) <= 255 else np.uint16
        write_picture(path, label_map.astype(depth))

    def _annotations(self, prediction: Prediction) -> list[dict[str, Any]]:
        annotations = []
        for i, (x1, y1, x2, y2) in enumerate(prediction.boxes.tolist()):
            annotation = dict(
                id=len(self.annotations) + len(annotations) + 1, image_id=len(self.images),
                category_id=int(prediction.labels[i]) + 1, score=float(prediction.scores[i]),
                bbox=[round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                area=round((x2 - x1) * (y2 - y1), 2), iscrowd=0)
            if prediction.masks is not None:
                annotation |= _encoded(prediction.masks[i])
            annotations.append(annotation)
        return annotations


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an image file, complete or not at all.

    Raises:
        FolderError: it cannot be written.
    """
    is_encoded, data = cv2.imencode(path.suffix, picture)
    if not is_encoded:
        raise OSError(f'{path} cannot be written as {path.suffix}')
    with replaced_whole(path) as partial:
        partial.write_bytes(data.tobytes())


def _encoded(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    height, width = mask.shape
    return dict(area=int(mask.sum()), segmentation=dict(
        size=[height, width], counts=encoded['counts'].decode('ascii')))
