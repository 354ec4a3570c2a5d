"""Where the time of a training goes, by part: some iterations and a validation, nothing is kept.

    python tools/time_training.py retinanet_crossformer_s_coco --data-root data/coco
"""
import tempfile
from collections import Counter
from contextlib import suppress

from benchmarks.parts import Clock, Enough, PartsHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from xvit_mm.apis import build_runner
from xvit_mm.apis.command_line import common_arguments, config_of, run_tool
from xvit_mm.engine.allocator import keep_freed_memory_on_cpu
from xvit_mm.utils.config import ConfigError, check_data


def main() -> None:
    parser = common_arguments('Time an epoch and a validation by part.')
    parser.add_argument('--iterations', type=int, default=10, help='of the training')
    parser.add_argument('--images', type=int, default=10, help='of the validation')
    parser.add_argument('--skip', type=int, default=2, help='first iterations, which are slower')
    arguments = parser.parse_args()
    cfg = config_of(arguments)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    keep_freed_memory_on_cpu(arguments.allocator)
    # Nothing but the run itself: no checkpoints, pictures and curves.
    cfg.default_hooks = dict.fromkeys(cfg.default_hooks) | dict(
        timer=cfg.default_hooks.timer, param_scheduler=cfg.default_hooks.param_scheduler)
    cfg.val_dataloader.dataset.indices = arguments.images
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = build_runner(cfg)
        check_lengths(runner, arguments.iterations, arguments.skip)
        runner.register_hook(PartsHook(clock, arguments.iterations, arguments.skip))
        with suppress(Enough):
            runner.train()
        length = len(runner.train_dataloader)
        print_table(f'Training, {length} iterations an epoch', clock.seconds, arguments.iterations)
        clock.start()
        runner.val()
        print_table('Validation', clock.seconds, len(runner.val_dataloader) - arguments.skip)


def check_lengths(runner: Runner, iterations: int, skip: int) -> None:
    """Refuse to measure more than an epoch, or a validation of which nothing is left.

    Raises:
        ConfigError: as said.
    """
    if iterations < 1 or skip < 0:
        raise ConfigError(f'--iterations {iterations} --skip {skip}: give at least 1 and 0')
    is_by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    length = len(runner.train_dataloader)
    if is_by_epoch and iterations + skip > length:
        raise ConfigError(f'--iterations {iterations} --skip {skip}: an epoch has only {length} '
                          'iterations, which must be enough for both')
    if (length := len(runner.val_dataloader)) <= skip:
        raise ConfigError(f'--skip {skip}: the validation has only {length} batches, so none would '
                          'be left to measure. Give more --images')


def print_table(title: str, seconds: Counter[str], steps: int) -> None:
    """Parts from the longest to the shortest."""
    whole = sum(seconds.values())
    print(f'\n{title}: {1e3 * whole / steps:.0f} ms each\n\n| part | ms | share |\n|---|---|---|')
    for name, time in seconds.most_common():
        print(f'| {name} | {1e3 * time / steps:.1f} | {time / whole:.1%} |')


if __name__ == '__main__':
    run_tool(main)
