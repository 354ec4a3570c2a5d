"""What the command-line tools do, callable from Python."""
from typing import TYPE_CHECKING, Any

from .build import build_model, build_runner

if TYPE_CHECKING:
    from .inference import Prediction, Predictor

__all__ = ['Prediction', 'Predictor', 'build_model', 'build_runner']


def __getattr__(name: str) -> Any:
    # Only where they are needed: training does without.
    if name in ('Prediction', 'Predictor'):
        from . import inference
        return getattr(inference, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
