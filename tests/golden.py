"""Weights and images that anyone can regenerate, and recorded outputs of other people's code.

The recorded outputs lie in `tests/data/golden/`: elements 0, step, 2 step, ... of a flattened
tensor that the official code computed in float32 on a CPU, with mean, std and shape of the whole.
"""
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / 'data' / 'golden'


def golden_cases(pattern: str) -> list[Path]:
    """The recorded files whose name matches; never none."""
    files = sorted(FOLDER.glob(pattern))
    assert files, f'no {pattern} in {FOLDER}'
    return files


def golden_record(path: Path) -> dict:
    """The contents of a recorded file."""
    return json.loads(path.read_text())


def golden_weights(keys: Iterable[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """A state dict that depends only on names and shapes."""
    return {name: _weight(name, shape) for name, shape in keys}


def _weight(name: str, shape: list[int]) -> Tensor:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(shape).astype(np.float32)
    if name.startswith(('cls_token', 'pos_embed')):
        values = 0.5 * values
    elif len(shape) > 1:
        values = values / np.float32(np.sqrt(np.prod(shape[1:])))
    elif name.endswith('weight'):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(np.asarray(values, np.float32))


def golden_image(batch: int, height: int, width: int) -> Tensor:
    """[batch, 3, height, width] of reproducible noise in [-1, 1]."""
    index = np.arange(batch * 3 * height * width, dtype=np.uint64)
    values = ((index * np.uint64(2654435761)) % np.uint64(2**32)) >> np.uint64(24)
    image = (values.astype(np.float64) / 127.5 - 1).astype(np.float32)
    return torch.from_numpy(image).view(batch, 3, height, width)


def deviation(output: Tensor, recorded: dict) -> float:
    """Largest difference from the recorded values; fails on another shape, mean or std."""
    assert list(output.shape) == recorded['shape']
    values = np.array(recorded['values'])
    ours = output.detach().flatten()[::recorded['step']].numpy()[:len(values)]
    assert len(ours) == len(values)
    mean, std = output.double().mean().item(), output.double().std(unbiased=False).item()
    assert abs(mean - recorded['mean']) <= 1e-5 * max(1, abs(recorded['mean']))
    assert abs(std - recorded['std']) <= 1e-5 * recorded['std']
    return float(np.abs(ours - values).max())
