"""torch.compile while testing."""
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from xvit_mm.registry import HOOKS
from xvit_mm.utils.config import ConfigError


@HOOKS.register_module()
class CompileHook(Hook):
    """Tests with the backbone compiled, for `xvit_mm.Runner` and as its config's `compile` says."""

    # After FastInferenceHook, which puts another backbone in its place.
    priority = 'LOW'

    def __init__(self) -> None:
        self._backbone: nn.Module | None = None

    def before_test(self, runner: Runner) -> None:
        """Compile the backbone.

        Raises:
            ConfigError: the runner is another one than `xvit_mm.Runner`.
        """
        if not hasattr(runner, 'compile_backbone'):
            raise ConfigError(f'{type(runner).__name__} compiles nothing while it tests: choose '
                              "runner_type='xvit_mm.Runner', or test without --compile")
        self._backbone = runner.compile_backbone(testing=True)

    def after_test(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Leave the backbone uncompiled: other weights may follow."""
        if self._backbone is not None:
            self._backbone._compiled_call_impl, self._backbone = None, None
