"""The frameworks that a config may be for."""
import importlib.util

from .config import ConfigError

# By default_scope, the distributions that bring it.
FRAMEWORKS = {
    'mmdet': 'onedl-mmdetection or mmdet',
    'mmseg': 'onedl-mmsegmentation or mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain or mmpretrain',
    'mmrotate': 'onedl-mmrotate or mmrotate',
}


def check_installed(scope: str | None) -> None:
    """Ask for the framework of a config's `default_scope`; any other scope passes.

    Without it mmengine would only say that a class is not registered.

    Raises:
        ConfigError: it is not installed; says what to install.
    """
    if scope in FRAMEWORKS and importlib.util.find_spec(scope) is None:
        raise ConfigError(f'the config is one of {scope}, which is not installed here; '
                          f'pip install {FRAMEWORKS[scope]}')
