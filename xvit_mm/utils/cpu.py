"""What the CPU can do."""
import platform
from pathlib import Path

# As Linux names them, on x86 and on Arm.
BF16_FLAGS = ('amx_bf16', 'avx512_bf16', 'bf16')


def has_bf16_instructions() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices in hardware; else autocast only costs.

    False where the system does not tell, that is anywhere but on Linux.
    """
    cpuinfo = Path('/proc/cpuinfo')
    if platform.system() != 'Linux' or not cpuinfo.exists():
        return False
    lines = cpuinfo.read_text().lower().splitlines()
    flags = next((line for line in lines if line.startswith(('flags', 'features'))), '')
    return bool(set(flags.split()) & set(BF16_FLAGS))
