"""Everything that only a GPU can tell about the backbones, as one report in Markdown.

    python tools/gpu_report.py > report.md
    python tools/gpu_report.py --small --backend eager    # minutes on a CPU: does the script run?

Per precision: time and peak memory of inference and training. Then launches per pass, the first and
second pass at many sizes (a library that plans per shape stalls at the first), one very large
batch, activation checkpointing on a large image, and compilation.
"""
import argparse
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from benchmarks.contenders import compile_in_place, forget_compiled
from benchmarks.measuring import quiet_profiler
from mmengine.registry import MODELS
from torch import Tensor, nn

from xvit_mm.apis.command_line import run_tool

BACKBONES = {
    'CrossFormer-S': dict(type='xvit_mm.CrossFormer', arch='s'),
    'CrossViT-S': dict(type='xvit_mm.CrossViT', arch='small'),
    'XFormer': dict(type='xvit_mm.XFormer'),
    'VT-ResNet-50': dict(type='xvit_mm.VTResNet', arch='r50'),
}
SLIM = dict(arch=dict(embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)))
DTYPES = {'fp32': None, 'fp16': torch.float16, 'bf16': torch.bfloat16}


class Bench:
    """Times passes of a model on one device."""

    def __init__(self, device: torch.device, rounds: int, backend: str = 'inductor') -> None:
        self.device, self.rounds, self.backend = device, rounds, backend

    def images(self, batch: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, 3, height, width, device=self.device)

    def build(self, name: str, train: bool = False, **settings: object) -> nn.Module:
        return MODELS.build(dict(BACKBONES[name], **settings)).to(self.device).train(train)

    def step(self, model: nn.Module, images: Tensor, dtype: torch.dtype | None) -> None:
        train = model.training
        cast = torch.autocast(self.device.type, dtype) if dtype else nullcontext()
        with torch.set_grad_enabled(train), cast:
            maps = model(images)
        if train:
            torch.autograd.backward(maps, [torch.ones_like(x) for x in maps])
            model.zero_grad(set_to_none=True)

    def seconds(self, function: Callable[[], None]) -> float:
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def median_ms(self, function: Callable[[], None]) -> float:
        function()
        return 1e3 * statistics.median(self.seconds(function) for _ in range(self.rounds))

    def peak_gb(self, function: Callable[[], None]) -> str:
        if self.device.type != 'cuda':
            return '-'
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        return f'{torch.cuda.max_memory_allocated(self.device) / 1e9:.2f}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--small', action='store_true', help='small sizes and batches')
    parser.add_argument('--backend', default='inductor', help='of torch.compile')
    sections = {section.__name__: section for section in (
        speed, launches, new_sizes, large_batch, checkpointing, compilation)}
    parser.add_argument('--sections', nargs='+', choices=list(sections), default=list(sections),
                        help='parts of the report, all by default')
    arguments = parser.parse_args()
    # What models and the profiler log would stand between the rows.
    logging.disable(logging.INFO)
    quiet_profiler()
    device = torch.device(arguments.device)
    bench = Bench(device, rounds=2 if arguments.small else 20, backend=arguments.backend)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    print(f'# Backbones on {name}, torch {torch.__version__}')
    for section in [sections[name] for name in arguments.sections]:
        print(f'\n## {section.__doc__}\n', flush=True)
        for row in rows_of(section, bench, arguments.small):
            print(f'| {" | ".join(map(str, row))} |', flush=True)


def rows_of(
    section: Callable[[Bench, bool], Iterator[tuple]], bench: Bench, small: bool
) -> Iterator[tuple]:
    """The rows of a table with the rule below its head; a failure becomes a row."""
    rows = section(bench, small)
    head = next(rows)
    yield head
    yield ('---',) * len(head)
    try:
        yield from rows
    except (RuntimeError, NotImplementedError) as error:
        yield (f'stopped: {str(error).splitlines()[0]}',)


def speed(bench: Bench, small: bool) -> Iterator[tuple]:
    """Inference and training"""
    yield 'model', 'precision', 'size', 'batch', 'inference ms', 'GB', 'training ms', 'GB'
    sizes = [(32, 64)] if small else [(224, 224), (512, 512), (800, 1344)]
    for name in BACKBONES:
        for precision, dtype in list(DTYPES.items())[::2 if small else 1]:
            for size in sizes:
                for batch in (1, 2 if small else 8):
                    row: list[str] = []
                    for train in (False, True):
                        model, images = bench.build(name, train), bench.images(batch, *size)
                        step = partial(bench.step, model, images, dtype)
                        row += [f'{bench.median_ms(step):.1f}', bench.peak_gb(step)]
                    yield name, precision, f'{size[0]} x {size[1]}', batch, *row


def launches(bench: Bench, small: bool) -> Iterator[tuple]:
    """Kernels launched by one pass (on a CPU: operators), one image"""
    yield 'model', 'size', 'inference', 'training step'
    on_gpu = bench.device.type == 'cuda'
    activity = torch.profiler.ProfilerActivity
    for name in BACKBONES:
        for size in [(64, 96)] if small else [(224, 224), (512, 512), (800, 1344)]:
            counts = []
            for train in (False, True):
                model, images = bench.build(name, train), bench.images(1, *size)
                bench.step(model, images, None)
                with torch.profiler.profile(
                        activities=[activity.CUDA if on_gpu else activity.CPU]) as profile:
                    bench.step(model, images, None)
                    bench.wait()
                counts.append(len(profile.events()))
            yield name, f'{size[0]} x {size[1]}', *counts


def new_sizes(bench: Bench, small: bool) -> Iterator[tuple]:
    """Inference at many sizes in bfloat16: the first pass at a size against the second"""
    yield 'model', 'sizes', 'first pass ms', 'worst', 'second pass ms'
    count, unit = (3, 32) if small else (50, 32)
    sizes = [(unit * (2 + i), unit * (3 + 2 * i % 7)) if small else
             (480 + 32 * (i % 11), 640 + 32 * (i // 11 * 4)) for i in range(count)]
    for name in BACKBONES:
        model = bench.build(name)
        first, second = (
            [bench.seconds(partial(bench.step, model, bench.images(1, *size), torch.bfloat16))
             for size in sizes] for _ in range(2))
        # The first size of all pays for more than its size.
        yield (name, count, f'{1e3 * statistics.median(first[1:]):.1f}',
               f'{1e3 * max(first[1:]):.0f}', f'{1e3 * statistics.median(second):.1f}')


def large_batch(bench: Bench, small: bool) -> Iterator[tuple]:
    """One batch of 1024 images of 224 x 224 in bfloat16 (CUDA grids end at 65,535 groups)"""
    yield 'model', 'images', 'ms', 'GB'
    batch, side = (8, 64) if small else (1024, 224)
    for name in BACKBONES:
        model, images = bench.build(name), bench.images(batch, side, side)
        step = partial(bench.step, model, images, torch.bfloat16)
        yield name, batch, f'{bench.median_ms(step):.0f}', bench.peak_gb(step)


def checkpointing(bench: Bench, small: bool) -> Iterator[tuple]:
    """Training step on one image of 1024 x 2048 in bfloat16, with and without `with_cp`"""
    yield 'model', 'with_cp', 'ms', 'GB'
    size = (64, 128) if small else (1024, 2048)
    for name in BACKBONES:
        for with_cp in (False, True):
            model, images = bench.build(name, True, with_cp=with_cp), bench.images(1, *size)
            step = partial(bench.step, model, images, torch.bfloat16)
            yield name, with_cp, f'{bench.median_ms(step):.1f}', bench.peak_gb(step)


def compilation(bench: Bench, small: bool) -> Iterator[tuple]:
    """Compiled inference in bfloat16, one image: dynamic shapes, and CUDA graphs at a fixed size"""
    yield 'model', 'mode', 'size', 'eager ms', 'compiled ms'
    size = (32, 64) if small else (512, 512)
    modes = {'dynamic': dict(dynamic=True), 'CUDA graphs': dict(mode='reduce-overhead')}
    # A CPU compiles a whole backbone for minutes.
    backbones = {'CrossFormer-S': SLIM} if small else dict.fromkeys(BACKBONES, {})
    for name, settings in backbones.items():
        for mode, options in modes.items():
            forget_compiled()
            model, images = bench.build(name, **settings), bench.images(1, *size)
            step = partial(bench.step, model, images, torch.bfloat16)
            eager = bench.median_ms(step)
            compile_in_place(model, backend=bench.backend, **options)
            yield (f'{name}, slim' if small else name, mode, f'{size[0]} x {size[1]}', f'{eager:.1f}',
                   f'{bench.median_ms(step):.1f}')


if __name__ == '__main__':
    run_tool(main)
