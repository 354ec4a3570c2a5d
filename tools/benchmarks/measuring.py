"""Time and memory of contenders that run in turns."""
import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from xvit_mm.utils.complexity import count_macs

from .contenders import Contender

CLOCKS = {'wall': time.perf_counter, 'processor': time.process_time}


def race(
    contenders: Sequence[Contender], *, train: bool, rounds: int, clock: str = 'wall'
) -> None:
    """Warm up and measure memory, then time the contenders in turns."""
    on_gpu = contenders[0].inputs[0].is_cuda
    for contender in contenders:
        contender.model.train(train)
        for x in contender.inputs:
            x.requires_grad_(train and contender.is_neck)
        contender.memory = peak_memory(partial(contender.step, train), on_gpu)
    now = CLOCKS[clock]
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(rounds):
        for contender in contenders:
            synchronize()
            start = now()
            contender.step(train)
            synchronize()
            contender.times.append(now() - start)


def quiet_profiler() -> None:
    """Keep the profiler from reporting each of its starts."""
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    warnings.filterwarnings('ignore', 'Warning: Profiler clears')


def peak_memory(function: Callable[[], None], on_gpu: bool) -> int:
    """Bytes that are allocated at the same time, at most, beyond those before the call."""
    function()
    gc.collect()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print the measurements of one size as a table."""
    width = max(len(row['model']) for row in rows)
    height, length = rows[0]['size']
    print(f'{height} x {length}\n{"":<{width}}{"ms (median)":>13}{"ms (best)":>11}{"x":>7}'
          f'{"MB (peak)":>11}{"x":>7}{"M param.":>10}{"GMACs":>8}{"images/s":>10}')
    for row in rows:
        print(f'{row["model"]:<{width}}{row["ms"]:>13.1f}{row["best_ms"]:>11.1f}'
              f'{row["ratio"]:>7.2f}{row["peak_mb"]:>11.1f}{row["memory_ratio"]:>7.2f}'
              f'{row["m_parameters"]:>10.2f}'
              f'{"-" if row["gmacs"] is None else format(row["gmacs"], ".2f"):>8}'
              f'{row["images_per_s"]:>10.1f}', flush=True)


def measurements(
    size: tuple[int, int], contender: Contender, first: Contender
) -> dict[str, Any]:
    """The figures of a contender, and their ratios to those of the first."""
    median = statistics.median(contender.times)
    countable = not contender.is_neck and contender.variant not in ('compiled', 'frozen')
    figures = dict(
        ms=1e3 * median, best_ms=1e3 * min(contender.times),
        # Of the rounds, not of the medians: the turns of one round share the state of the machine.
        ratio=statistics.median(b / a for a, b in zip(first.times, contender.times)),
        images_per_s=len(contender.inputs[0]) / median,
        peak_mb=contender.memory / 1e6, memory_ratio=contender.memory / max(first.memory, 1),
        m_parameters=sum(p.numel() for p in contender.model.parameters()) / 1e6)
    return dict(
        model=contender.name, size=list(size),
        **{name: float(f'{value:.4g}') for name, value in figures.items()},
        gmacs=float(f'{count_macs(contender.model, size) / 1e9:.4g}') if countable else None)
