"""What the command-line tools share: options, errors in one line, clean interruption."""
import argparse
import atexit
import errno
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import get_rank, is_distributed

from xvit_mm.checkpoints import CheckpointError
from xvit_mm.datasets.own_data import use_own_data
from xvit_mm.engine.data_errors import DataError
from xvit_mm.engine.hooks import DivergedError, close_progress_bar
from xvit_mm.utils.config import ConfigError, load_config
from xvit_mm.utils.config_options import revert_sync_bn
from xvit_mm.utils.files import FolderError

# What a wrong file or option raises; anything else is a defect and keeps its traceback.
EXPECTED_ERRORS = (ConfigError, CheckpointError, FileNotFoundError, PermissionError,
                   ModuleNotFoundError, FolderError, DataError, DivergedError)
INTERRUPTED = 130
_DICT = re.compile(r'[=\[(,]\s*(dict\(|\{[^}]*:)')
# Of a disk that cannot take more: full, over quota, read-only, or a file beyond the limit.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def config_arguments(description: str) -> argparse.ArgumentParser:
    """A parser for a config and what to change in it."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', help='path of a config, or the name of one that ships')
    parser.add_argument(
        '--cfg-options', nargs='+', action=Options, metavar='NAME=VALUE',
        help='entries of the config to set, as model.backbone.arch=t')
    return parser


class Options(DictAction):
    """mmengine's reading of NAME=VALUE, with a line for what it cannot read."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
                 values: Any, option_string: str | None = None) -> None:
        for value in values:
            try:
                if _DICT.search(value):  # mmengine takes it for a text, or recurses without end
                    raise ValueError(value)
                super().__call__(parser, namespace, [value], option_string)
            except (RecursionError, ValueError, AssertionError):
                parser.error(
                    f'{option_string} {value}: give NAME=VALUE with a number, a text, or a list of '
                    'these. The entries of a dict are set one by one, as NAME.KEY=VALUE, those of '
                    'a dict in a list as NAME.0.KEY=VALUE')


def common_arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that training and testing share."""
    parser = config_arguments(description)
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and pictures')
    add_data_root(parser)
    parser.add_argument(
        '--allocator', choices=['keeping', 'system'], default='keeping',
        help='on a CPU, keep freed memory for the next tensors, or give it back to the system')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='how several processes were started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser


def add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--data-root', help="folder of the data set, instead of the config's")


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `apply_own_data` reads."""
    parser.add_argument(
        '--own-data', metavar='FOLDER',
        help="another data set than the config's: COCO's format, images and labels, or a folder "
        'for each class; sets classes and heads')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='with --own-data for segmentation: names, if there is no classes.txt')
    parser.add_argument('--ignore-index', type=int, metavar='LABEL',
                        help='with --own-data for segmentation: the label of unlabelled pixels')


def apply_own_data(cfg: Config, arguments: argparse.Namespace) -> None:
    """Put the user's data into a config, if the arguments name any.

    Raises:
        ConfigError: as `use_own_data`, or options that do not go together are given.
    """
    if arguments.own_data and arguments.data_root:
        raise ConfigError(
            f'--own-data {arguments.own_data} and --data-root {arguments.data_root}: give one of '
            "them, --data-root for the config's own data set in another folder")
    if arguments.own_data:
        use_own_data(cfg, arguments.own_data, classes=arguments.classes,
                     ignore_index=arguments.ignore_index)
    elif arguments.classes or arguments.ignore_index is not None:
        raise ConfigError('--classes and --ignore-index go with --own-data')


def config_of(arguments: argparse.Namespace) -> Config:
    """The config that the common arguments describe.

    Raises:
        ConfigError: as `load_config`, or the processes were not started as `--launcher` says.
    """
    _check_launcher(arguments.launcher)
    cfg = load_config(arguments.config, arguments.cfg_options, data_root=arguments.data_root)
    cfg.launcher = arguments.launcher
    if arguments.work_dir or not cfg.get('work_dir'):
        cfg.work_dir = arguments.work_dir or f'work_dirs/{Path(arguments.config).stem}'
    if cfg.launcher == 'none' or get_device() == 'cpu':
        revert_sync_bn(cfg)
    return cfg


def _check_launcher(launcher: str) -> None:
    if launcher in ('slurm', 'mpi') and get_device() == 'cpu':
        raise ConfigError(
            f'--launcher {launcher}: mmengine gives every process a GPU of its own, and torch sees '
            'none here. On CPUs take torchrun and --launcher pytorch')
    # The variable that mmengine's init_dist reads; without it comes a KeyError.
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise ConfigError(
            '--launcher pytorch: this process was not started by torchrun. Start all of them with '
            '"tools/dist_train.sh CONFIG NUMBER" or "torchrun --nproc-per-node NUMBER '
            'tools/train.py CONFIG --launcher pytorch"')


def run_tool(main: Callable[[], Any], *, resumable: bool = False) -> None:
    """Run a tool's main function and exit with 0, 1 (a clear error) or 130 (interrupted)."""
    interruption = _Interruption()
    try:
        main()
        if is_distributed():
            torch.distributed.destroy_process_group()
            _exit_at_once()
    except KeyboardInterrupt:
        _exit_interrupted(resumable)
    except EXPECTED_ERRORS as error:
        if interruption.came:
            _exit_interrupted(resumable)
        _exit_with(error)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has enough. Nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        file = f'{error.filename}: ' if error.filename else ''
        _exit_with(f'{file}{error.strerror}. Checkpoints written earlier are intact; make room'
                   f'{" and go on with --resume" if resumable else ""}')
    except BaseException:
        # mmengine turns an interruption while it formats a config into a SyntaxError.
        if interruption.came:
            _exit_interrupted(resumable)
        raise


class _Interruption:
    """Has SIGTERM and SIGINT raise KeyboardInterrupt, and remembers that one came."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._handle)
        # A shell that starts a program in the background may have it ignore SIGINT.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if multiprocessing.parent_process() is not None:
            # A worker of a data loader, which has nothing to clean up or to report.
            os._exit(128 + number)
        self.came = True
        raise KeyboardInterrupt


def _exit_at_once() -> NoReturn:
    """End one of several processes, with what Python does at its exit but not what C++ does.

    Threads that torch leaves running now and then abort a process that ends ("terminate called
    without an active exception"). torchrun would report a failure, and stop the other processes
    while they write their results.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _exit_interrupted(resumable: bool) -> NoReturn:
    close_progress_bar()
    advice = '; the same command with --resume continues from the last checkpoint'
    sys.stderr.write(f'\ninterrupted{advice if resumable else ""}\n')
    sys.stderr.flush()
    with suppress(OSError):  # from a pipe that is closed
        sys.stdout.flush()
    # Not sys.exit: the signal has killed the data loader's workers as well, and torch would
    # report that as an error of its own.
    os._exit(INTERRUPTED)


def _exit_with(error: object) -> NoReturn:
    close_progress_bar()
    # Any of several processes may be the only one that fails.
    rank = get_rank()
    sys.stderr.write(f'{f"rank {rank}: " if rank else ""}error: {error}\n')
    sys.exit(1)
