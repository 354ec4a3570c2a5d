"""What steers a run: the runner, the optimizer's settings, the metrics and the hooks."""
from . import hooks
from .cpu_amp import CPUAmpOptimWrapper
from .metrics import ClassificationLoss
from .optimizers import OptimWrapperConstructor
from .runner import Runner

__all__ = [
    'CPUAmpOptimWrapper', 'ClassificationLoss', 'OptimWrapperConstructor', 'Runner', 'hooks'
]
