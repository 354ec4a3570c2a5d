"""Mixed precision on a CPU."""
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from xvit_mm.registry import OPTIM_WRAPPERS

# As Linux names them, on x86 and on Arm.
BF16_FLAGS = ('amx_bf16', 'avx512_bf16', 'bf16')


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware; without that, autocast only costs.

    False where the system does not tell, that is anywhere but on Linux.
    """
    cpuinfo = Path('/proc/cpuinfo')
    if platform.system() != 'Linux' or not cpuinfo.exists():
        return False
    lines = cpuinfo.read_text().lower().splitlines()
    flags = next((line for line in lines if line.startswith(('flags', 'features'))), '')
    return bool(set(flags.split()) & set(BF16_FLAGS))


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Forward passes in bfloat16 by autocast, on a CPU.

    What mmengine's `AmpOptimWrapper` does on a GPU. bfloat16 has the range of float32, so that
    losses need no scaling; the weights and the optimizer's state stay in float32.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
