"""What steers a run: the runner and the hooks. `config` and `tool` serve the command line."""
from . import hooks
from .runner import Runner

__all__ = ['Runner', 'hooks']
