"""What steers a run: the runner, the optimizer's settings and the hooks. `config` and `tool` serve
the command line."""
from . import hooks
from .optim import OptimWrapperConstructor
from .runner import Runner

__all__ = ['OptimWrapperConstructor', 'Runner', 'hooks']
