"""Backbones or necks side by side: time, peak memory and size of a forward pass or training step.

    python tools/benchmark.py xvit_mm.XFormer mmpretrain.MobileViT:arch=small --sizes 256 512 1024
    python tools/benchmark.py "mmdet.FPN:in_channels=[64,128],out_channels=64,num_outs=2" \\
        "xvit_mm.VTFPN:in_channels=[64,128],out_channels=64,num_outs=2" --maps 64/4 128/8
    python tools/benchmark.py --peers --check tools/benchmarks/recorded.json
    python tools/benchmark.py --profile xvit_mm.CrossFormer:arch=s --sizes 512

All models live in one process and run in turns, so that a busy machine is busy for all of them.
"""
import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.contenders import VARIANTS, Contender, build, check_equality, names_of, noise
from benchmarks.measuring import CLOCKS, measurements, quiet_profiler, race, report
from benchmarks.peers import CASES, COMPARISONS, Run, runs_of
from benchmarks.profiling import KINDS, OTHER, shares
from benchmarks.records import (check_against, machine, read_record, replace_section, table_of,
                                write_record)

from xvit_mm.apis.command_line import run_tool
from xvit_mm.engine.allocator import keep_freed_memory
from xvit_mm.utils.config import ConfigError

BACKBONES = ('xvit_mm.CrossFormer:arch=s', 'xvit_mm.CrossViT:arch=small', 'xvit_mm.XFormer',
             'xvit_mm.VTResNet:arch=r50')


def main() -> None:
    arguments = parse_arguments()
    if arguments.allocator == 'keeping' and not keep_freed_memory():
        raise ConfigError('--allocator keeping needs glibc; leave it out')
    quiet_profiler()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    threads = '1 thread' if arguments.threads == 1 else f'{arguments.threads} threads'
    print(f'{device}, {threads}, {arguments.clock} clock, '
          f'{arguments.allocator} allocator, torch {torch.__version__}')
    if arguments.profile:
        text, section = profile(arguments, device), 'profile'
    else:
        rows, about = [], machine(device)
        for run in runs(arguments):
            measured = measure(run, arguments, device)
            rows += measured
            if arguments.record:
                # After each, because all of them can take an hour.
                write_record(arguments.record, about, measured)
        # The page shows the whole record, the run may be a part of it.
        text, section = table_of(
            read_record(arguments.record)['rows'] if arguments.record else rows), 'peers'
        if arguments.check:
            check_against(arguments.check, about, rows)
    if arguments.docs:
        replace_section(arguments.docs, section, text)


def runs(arguments: argparse.Namespace) -> Iterator[Run]:
    """What to measure: the given models at the given sizes, or the recorded comparisons."""
    if arguments.peers is None:
        for size in arguments.sizes:
            yield Run(arguments.models, size, arguments.batch, arguments.train, arguments.maps)
    for comparison in arguments.peers or ():
        yield from runs_of(comparison, arguments.cases)


def measure(
    run: Run, arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Measure and print one run; returns a row for each contender."""
    print(f'\n{"training step" if run.train else "inference"}, batch {run.batch}')
    inputs = noise(run.size, run.maps, run.batch, device)
    contenders = [
        Contender(name, model, variant, inputs, is_neck=bool(run.maps), amp=arguments.amp,
                  backend=arguments.backend)
        for name, model in zip(names_of(run.models), (build(m).to(device) for m in run.models))
        for variant in arguments.variants]
    if not run.train:
        check_equality(contenders, len(arguments.variants))
    race(contenders, train=run.train, rounds=arguments.rounds, clock=arguments.clock)
    settings = dict(
        first=contenders[0].name, train=run.train, batch=run.batch, amp=arguments.amp,
        threads=arguments.threads, clock=arguments.clock, allocator=arguments.allocator)
    rows = [settings | measurements(run.size, contender, contenders[0]) for contender in contenders]
    report(rows)
    return rows


def profile(arguments: argparse.Namespace, device: torch.device) -> str:
    """Print and return a table of the kinds of operations that passes spend their time in."""
    if device.type != 'cpu':
        raise ConfigError('--profile sees what a CPU computes; take --device cpu')
    lines = [f'| model | | size | {" | ".join(KINDS)} | together | largest of the others |',
             '|---' * (len(KINDS) + 5) + '|']
    print('\n'.join(lines), flush=True)
    models = arguments.models or BACKBONES
    for name, model in zip(names_of(models), map(build, models)):
        for size in arguments.sizes:
            for train in (False, True):
                contender = Contender(name, model, arguments.variants[0], noise(
                    size, arguments.maps, arguments.batch, device), is_neck=bool(arguments.maps),
                    amp=arguments.amp, backend=arguments.backend)
                contender.prepare(train)
                kinds, others = shares(partial(contender.step, train), arguments.rounds)
                largest = ', '.join(f'{op} {share:.0%}' for op, share in others.most_common(3))
                cells = [f'{kinds[kind]:.0%}' for kind in KINDS]
                lines.append(f'| {name.rpartition(".")[2]} | {"training" if train else "inference"} '
                             f'| {size[0]} x {size[1]} | {" | ".join(cells)} '
                             f'| {1 - kinds[OTHER]:.0%} | {largest} |')
                print(lines[-1], flush=True)
    return '\n'.join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time and peak memory of backbones or necks, side by side.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('models', nargs='*', metavar='TYPE[:KEY=VALUE,...]',
                        help='backbones or necks, or timm.NAME; ratios are to the first')
    parser.add_argument('--peers', nargs='*', choices=COMPARISONS, metavar='NAME',
                        help='in place of models: the comparisons of docs/performance.md, all or '
                        f'some of {", ".join(COMPARISONS)}')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES), metavar='CASE',
                        help=f'of --peers: all or some of {", ".join(CASES)}')
    parser.add_argument('--profile', action='store_true',
                        help='shares of the time by kind of operation, inference and training, of '
                        'the given models or of all four')
    parser.add_argument('--sizes', type=size_of, nargs='+', metavar='SIZE',
                        default=[(256, 256), (512, 512), (1024, 1024)],
                        help='of the image in pixels, a side or HEIGHTxWIDTH')
    parser.add_argument('--maps', type=map_of, nargs='+', default=[], metavar='CHANNELS/STRIDE',
                        help='feature maps in place of the image, for necks')
    parser.add_argument(
        '--variants', nargs='+', choices=list(VARIANTS), default=['eager'],
        help='; '.join(f'{name}: {text}' for name, text in VARIANTS.items()))
    parser.add_argument('--compile', action='store_true', help='add the variant `compiled`')
    parser.add_argument('--backend', default='inductor', help='of the variant `compiled`')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each model')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--train', action='store_true', help='forward and backward')
    parser.add_argument('--amp', action='store_true', help='bfloat16 by autocast')
    parser.add_argument('--record', '--json', metavar='FILE',
                        help='write what was measured there, as JSON; other measurements in the '
                        'file stay')
    parser.add_argument('--check', metavar='FILE',
                        help='fail if a ratio is 15%% below that in this file of --record')
    parser.add_argument('--docs', metavar='PAGE',
                        help='write the table between `<!-- peers -->` (with --profile: '
                        '`<!-- profile -->`) and `<!-- end of ... -->` in this page')
    parser.add_argument(
        '--clock', choices=list(CLOCKS), default='wall',
        help='processor: the time this process computed, where other work disturbs the wall clock')
    parser.add_argument(
        '--allocator', choices=['system', 'keeping'], default='system',
        help='keeping: do not give freed memory back to the system (CPU)')
    arguments = parser.parse_args()
    if arguments.compile and 'compiled' not in arguments.variants:
        arguments.variants = [*arguments.variants, 'compiled']
    if arguments.peers == []:
        arguments.peers = list(COMPARISONS)
    if bool(arguments.models) + (arguments.peers is not None) != 1 and not arguments.profile:
        parser.error('give models, or --peers without models')
    return arguments


def size_of(text: str) -> tuple[int, int]:
    """Height and width from `512` or `800x1216`."""
    sides = [int(side) if side.isdigit() else 0 for side in text.split('x')]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(
            f'invalid size {text!r}: give pixels, as 512 or 800x1216 (HEIGHTxWIDTH)')
    return sides[0], sides[-1]


def map_of(text: str) -> tuple[int, int]:
    """Channels and stride from `256/4`."""
    numbers = [int(number) if number.isdigit() else 0 for number in text.split('/')]
    if len(numbers) != 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f'invalid map {text!r}: give CHANNELS/STRIDE, as 256/4')
    return numbers[0], numbers[1]


if __name__ == '__main__':
    run_tool(main)
