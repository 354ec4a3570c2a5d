"""What steers a run: the runner, the optimizer's settings and the hooks."""
from . import hooks
from .optimizers import OptimWrapperConstructor
from .runner import Runner

__all__ = ['OptimWrapperConstructor', 'Runner', 'hooks']
