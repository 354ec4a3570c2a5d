"""How a CPU process handles the memory of large tensors."""
import ctypes
import sys

from mmengine.device import get_device
from mmengine.logging import print_log

# From malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory for the next tensors instead of giving it back to the system.

    By default glibc maps every block above 32 MB anew and gives it back when it is freed, so that
    the system clears each page of each large tensor again. With images of 1024 x 1024 that can be
    more work than the model itself: on an idle machine with two cores XFormer's forward pass took
    0.35 s without it and 1.15 s with it (`tools/benchmark.py --allocator keeping`). The process
    then holds its peak memory until it ends.

    Returns whether this system's allocator could be told so; without glibc nothing is changed.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def keep_freed_memory_on_cpu(allocator: str = 'keeping') -> None:
    """What the tools do before a run: `keep_freed_memory` if it computes on a CPU.

    `allocator`: `keeping`, or `system` to change nothing.
    """
    if allocator == 'keeping' and get_device() == 'cpu' and keep_freed_memory():
        print_log('CPU: freed memory is kept for the next tensors, so this process holds its peak '
                  'until it ends (--allocator system gives it back)', 'current')
