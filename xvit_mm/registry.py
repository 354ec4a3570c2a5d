"""Registries of scope `xvit_mm`.

mmengine imports `<scope>.registry` when a config says `<scope>.Name`, so `xvit_mm.CrossFormer`
resolves in mmdet, mmseg and mmpretrain without `custom_imports`.
"""
from collections.abc import Callable

from mmengine import registry as root

SCOPE = 'xvit_mm'


class ScopedRegistry(root.Registry):
    """A child registry that also offers its classes under their bare name in mmengine's root.

    A bare name that another package holds already stays theirs; the scoped name always works.
    """

    def register_module(
        self, name: str | None = None, force: bool = False, module: type | None = None
    ) -> type | Callable:
        """As `mmengine.Registry.register_module`; takes a class, or decorates one."""
        if module is None:
            return lambda cls: self.register_module(name, force, cls)
        super().register_module(name=name, force=force, module=module)
        if self.parent.module_dict.get(name or module.__name__) is None:
            self.parent.register_module(name=name, module=module)
        return module


def _child(parent: root.Registry, *locations: str) -> ScopedRegistry:
    return ScopedRegistry(parent.name, parent=parent, scope=SCOPE, locations=list(locations))


DATASETS = _child(root.DATASETS, 'xvit_mm.datasets.cifar10')
MODELS = _child(root.MODELS, 'xvit_mm.models')
HOOKS = _child(root.HOOKS, 'xvit_mm.engine')
METRICS = _child(root.METRICS, 'xvit_mm.engine')
RUNNERS = _child(root.RUNNERS, 'xvit_mm.engine')
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, 'xvit_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'xvit_mm.engine')
