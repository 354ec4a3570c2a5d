"""Backbones or necks side by side: time, peak memory and size of a forward pass or training step.

    python tools/benchmark.py xvit_mm.XFormer mmpretrain.MobileViT:arch=small --sizes 256 512 1024
    python tools/benchmark.py "mmdet.FPN:in_channels=[64,128],out_channels=64,num_outs=2" \\
        "xvit_mm.VTFPN:in_channels=[64,128],out_channels=64,num_outs=2" --maps 64/4 128/8

All models live in one process and run in turns, so that a busy machine is busy for all of them.
"""
import argparse
import ast
import copy
import gc
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.registry import MODELS
from torch import Tensor, nn

import official_crossformer  # noqa: F401  (registers it)
from xvit_mm.apis.command_line import run_tool
from xvit_mm.engine.allocator import keep_freed_memory
from xvit_mm.utils.complexity import count_macs
from xvit_mm.utils.config import ConfigError

VARIANTS = {
    'eager': 'as built',
    'math': 'as built, with attention that stores its N x N matrix',
    'channels_last': 'as built, channels last',
    'folded': 'convolution and BatchNorm folded, channels last',
    'compiled': 'torch.compile with dynamic shapes',
}
CHANNELS_LAST = ('channels_last', 'folded')
TOLERANCE, AMP_TOLERANCE = 1e-3, 5e-2
# A recorded ratio may fall by this share before --check fails.
MARGIN = 0.15


class Contender:
    """A model in one of the variants, and what was measured of it."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        variant: str,
        inputs: list[Tensor],
        *,
        is_neck: bool,
        amp: bool = False,
    ) -> None:
        self.amp = amp
        self.name, self.variant, self.is_neck = f'{name} {variant}', variant, is_neck
        self.model = prepared(model, variant)
        # Leaves of its own: what comes before a neck wants their gradients.
        self.inputs = [x.detach().contiguous(memory_format=memory_format(variant)) for x in inputs]
        self.times: list[float] = []
        self.memory = 0

    def forward(self) -> list[Tensor]:
        context: AbstractContextManager = (
            unfused_attention() if self.variant == 'math' else nullcontext())
        device = self.inputs[0].device.type
        with context, torch.autocast(device, torch.bfloat16, enabled=self.amp):
            maps = self.model(self.inputs if self.is_neck else self.inputs[0])
        return [maps] if isinstance(maps, Tensor) else list(maps)

    def step(self, train: bool) -> None:
        if not train:
            with torch.inference_mode():
                self.forward()
            return
        maps = [x for x in self.forward() if x.requires_grad]
        torch.autograd.backward(maps, [torch.ones_like(x) for x in maps])
        self.model.zero_grad(set_to_none=True)
        for x in self.inputs:
            x.grad = None


def main() -> None:
    arguments = parse_arguments()
    if arguments.allocator == 'keeping' and not keep_freed_memory():
        raise ConfigError('--allocator keeping needs glibc; leave it out')
    # The memory profiler reports each of its starts.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    warnings.filterwarnings('ignore', 'Warning: Profiler clears')
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    models = {name: build(text).to(device)
              for name, text in zip(names_of(arguments.models), arguments.models)}
    print(f'{device}, {arguments.threads} threads, batch {arguments.batch}, '
          f'{"training step" if arguments.train else "inference"}, {arguments.clock} clock, '
          f'{arguments.allocator} allocator, torch {torch.__version__}')
    settings = dict(
        device=device.type, threads=arguments.threads, batch=arguments.batch,
        train=arguments.train, amp=arguments.amp)
    results: list[dict[str, Any]] = []
    for size in arguments.sizes:
        inputs = noise(size, arguments.maps, arguments.batch, device)
        contenders = [Contender(name, model, variant, inputs, is_neck=bool(arguments.maps),
                                amp=arguments.amp)
                      for name, model in models.items() for variant in arguments.variants]
        if not arguments.train:
            check_equality(contenders, len(arguments.variants))
        for contender in contenders:
            contender.model.train(arguments.train)
            for x in contender.inputs:
                x.requires_grad_(arguments.train and contender.is_neck)
        race(contenders, arguments)
        results += report(size, contenders)
    record = dict(settings=settings, results=results)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(record, indent=1) + '\n')
    if arguments.check:
        check(record, json.loads(Path(arguments.check).read_text()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Time and peak memory of backbones or necks, side by side.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('models', nargs='+', metavar='TYPE[:KEY=VALUE,...]',
                        help='backbones or necks; ratios are to the first')
    parser.add_argument('--sizes', type=size_of, nargs='+', metavar='SIZE',
                        default=[(256, 256), (512, 512), (1024, 1024)],
                        help='of the image in pixels, a side or HEIGHTxWIDTH')
    parser.add_argument('--maps', type=map_of, nargs='+', default=[], metavar='CHANNELS/STRIDE',
                        help='feature maps in place of the image, for necks')
    parser.add_argument(
        '--variants', nargs='+', choices=list(VARIANTS), default=['eager'],
        help='; '.join(f'{name}: {text}' for name, text in VARIANTS.items()))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=7, help='measurements of each model')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--train', action='store_true', help='forward and backward')
    parser.add_argument('--amp', action='store_true', help='bfloat16 by autocast')
    parser.add_argument('--json', metavar='FILE', help='write settings and results there')
    parser.add_argument('--check', metavar='FILE',
                        help='fail if a ratio is 15%% below that in this file of --json; the first '
                        'model is yours and the others are its peers')
    parser.add_argument(
        '--clock', choices=['wall', 'processor'], default='wall',
        help='processor: the time this process computed, where other work disturbs the wall clock')
    parser.add_argument(
        '--allocator', choices=['system', 'keeping'], default='system',
        help='keeping: do not give freed memory back to the system (CPU)')
    return parser.parse_args()


def size_of(text: str) -> tuple[int, int]:
    """Height and width from `512` or `800x1216`."""
    sides = [int(side) for side in text.split('x')]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0], sides[-1]


def map_of(text: str) -> tuple[int, int]:
    """Channels and stride from `256/4`."""
    channels, stride = (int(number) for number in text.split('/'))
    if min(channels, stride) < 1:
        raise ValueError(text)
    return channels, stride


def noise(
    size: tuple[int, int], maps: list[tuple[int, int]], batch: int, device: torch.device
) -> list[Tensor]:
    """Images [B, 3, H, W], or the maps that a backbone would make of them."""
    return [torch.randn(batch, channels, *(-(-side // stride) for side in size), device=device)
            for channels, stride in maps or [(3, 1)]]


def names_of(texts: list[str]) -> list[str]:
    """The types, with their settings where types do not tell the models apart."""
    types = [text.partition(':')[0] for text in texts]
    return types if len(set(types)) == len(types) else texts


def build(text: str) -> nn.Module:
    """A model from `scope.Type:key=value,key=value`."""
    kind, _, settings = text.partition(':')
    try:
        call = ast.parse(f'dict({settings})', mode='eval').body
        if call.args:
            raise ValueError('a value without a name')
        config = {word.arg: literal(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f'{text!r}: {settings!r} is not KEY=VALUE,... ({error})') from error
    try:
        return MODELS.build(dict(type=kind, **config))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'{text!r} cannot be built: {error}') from error


def literal(value: ast.expr) -> object:
    """The value of a Python literal; a bare word is a string."""
    return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)


def prepared(model: nn.Module, variant: str) -> nn.Module:
    model = copy.deepcopy(model)
    # Some backbones do not return themselves here.
    model.eval()
    if variant == 'folded':
        model = fuse_conv_bn(model)
    model = model.to(memory_format=memory_format(variant))
    if variant == 'compiled':
        model.compile(dynamic=True)
    return model


def memory_format(variant: str) -> torch.memory_format:
    return torch.channels_last if variant in CHANNELS_LAST else torch.contiguous_format


def check_equality(contenders: list[Contender], num_variants: int) -> None:
    """Refuse to compare variants of a model that do not compute the same."""
    with torch.no_grad():
        for i in range(0, len(contenders), num_variants):
            first, *others = contenders[i:i + num_variants]
            expected = first.forward()
            for other in others:
                worst = max(float((a - b).norm() / a.norm())
                            for a, b in zip(expected, other.forward()))
                if worst > (AMP_TOLERANCE if first.amp else TOLERANCE):
                    raise ConfigError(f'{other.name} deviates by {worst:.1e} from {first.name}')


def race(contenders: list[Contender], arguments: argparse.Namespace) -> None:
    """Warm up and measure memory, then time the contenders in turns."""
    on_gpu = contenders[0].inputs[0].is_cuda
    for contender in contenders:
        contender.memory = peak_memory(partial(contender.step, arguments.train), on_gpu)
    clock = time.perf_counter if arguments.clock == 'wall' else time.process_time
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(arguments.rounds):
        for contender in contenders:
            synchronize()
            start = clock()
            contender.step(arguments.train)
            synchronize()
            contender.times.append(clock() - start)


def unfused_attention() -> AbstractContextManager:
    """Attention as separate products of matrices."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch before 2.3
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False)
    return sdpa_kernel(SDPBackend.MATH)


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


def report(size: tuple[int, int], contenders: list[Contender]) -> list[dict[str, Any]]:
    """Print the table of one size; returns its rows."""
    width = max(len(contender.name) for contender in contenders)
    first = contenders[0]
    print(f'\n{size[0]} x {size[1]}\n{"":<{width}}{"ms (median)":>13}{"ms (best)":>11}{"x":>7}'
          f'{"MB (peak)":>11}{"x":>7}{"M param.":>10}{"GMACs":>8}{"images/s":>10}')
    rows = []
    for contender in contenders:
        row = measurements(size, contender, first)
        rows.append(row)
        print(f'{contender.name:<{width}}{row["ms"]:>13.1f}{row["best_ms"]:>11.1f}'
              f'{row["ratio"]:>7.2f}{row["peak_mb"]:>11.1f}{row["memory_ratio"]:>7.2f}'
              f'{row["m_parameters"]:>10.2f}'
              f'{"-" if row["gmacs"] is None else format(row["gmacs"], ".2f"):>8}'
              f'{row["images_per_s"]:>10.1f}')
    return rows


def measurements(size: tuple[int, int], contender: Contender, first: Contender) -> dict[str, Any]:
    median = statistics.median(contender.times)
    countable = not contender.is_neck and contender.variant != 'compiled'
    return dict(
        size=list(size), model=contender.name, ms=1e3 * median, best_ms=1e3 * min(contender.times),
        # Of the rounds, not of the medians: the turns of one round share the state of the machine.
        ratio=statistics.median(b / a for a, b in zip(first.times, contender.times)),
        images_per_s=len(contender.inputs[0]) / median,
        peak_mb=contender.memory / 1e6, memory_ratio=contender.memory / max(first.memory, 1),
        m_parameters=sum(p.numel() for p in contender.model.parameters()) / 1e6,
        gmacs=count_macs(contender.model, size) / 1e9 if countable else None)


def check(record: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Compare the ratios with recorded ones.

    Raises:
        ConfigError: a ratio is `MARGIN` below the recorded one, or nothing can be compared.
    """
    if record['settings'] != earlier['settings']:
        raise ConfigError(f'--check: recorded with {earlier["settings"]}, measured with '
                          f'{record["settings"]}; measure with the same')
    ratios = {(*row['size'], row['model']): row['ratio'] for row in earlier['results']}
    found = [(row, ratios[key]) for row in record['results']
             if (key := (*row['size'], row['model'])) in ratios]
    if not found:
        raise ConfigError('--check: no size and model of this run is in the record')
    fallen = [f'{row["model"]} at {row["size"][0]} x {row["size"][1]}: {row["ratio"]:.2f}, '
              f'recorded {before:.2f}'
              for row, before in found if row['ratio'] < (1 - MARGIN) * before]
    if fallen:
        raise ConfigError('--check: ratios have fallen: ' + '; '.join(fallen))
    print(f'\n{len(found)} ratios are not below the recorded ones')


if __name__ == '__main__':
    run_tool(main)
