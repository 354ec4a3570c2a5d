"""torch.compile while testing."""
from mmengine.hooks import Hook
from mmengine.runner import Runner

from xvit_mm.registry import HOOKS


@HOOKS.register_module()
class CompileHook(Hook):
    """Tests with the backbone compiled, for `xvit_mm.Runner` and as its config's `compile` says."""

    # After FastInferenceHook, which puts another backbone in its place.
    priority = 'LOW'

    def before_test(self, runner: Runner) -> None:
        runner.compile_backbone()
