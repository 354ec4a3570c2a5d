"""What the command-line tools do, callable from Python."""
from .build import build_model, build_runner

__all__ = ['build_model', 'build_runner']
