"""From a config to the model or the runner that it describes."""
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner as MMEngineRunner
from torch import nn

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.config_options import revert_sync_bn
from xvit_mm.utils.frameworks import check_installed


def build_runner(cfg: Config) -> MMEngineRunner:
    """The runner that the config asks for; one that names none gets `xvit_mm.Runner`.

    Raises:
        ConfigError: its framework is not installed, or some class in it does not exist or refuses
            its arguments.
    """
    check_installed(cfg.get('default_scope'))
    if 'runner_type' not in cfg:
        cfg.runner_type = 'xvit_mm.Runner'
        print_log(f'{cfg.filename} names no runner_type and gets xvit_mm.Runner: official '
                  'checkpoints, safe reading, resuming after a kill', 'current')
    elif cfg.runner_type != 'xvit_mm.Runner':
        print_log(f'{cfg.filename} asks for {cfg.runner_type}: checkpoints are read, written and '
                  'resumed as that runner does, not as xvit_mm.Runner does', 'current')
    if cfg.get('strategy') and get_device() == 'cpu':
        raise ConfigError(
            f'{cfg.filename}: strategy {cfg.strategy.get("type")!r} needs a GPU, and torch sees '
            'none. Leave out strategy and runner_type; --launcher pytorch then uses DDP')
    try:
        return RUNNERS.build(cfg)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'{cfg.filename} cannot be built: {error}') from error


def build_model(cfg: Config) -> nn.Module:
    """Only the model of a config, as built.

    Raises:
        ConfigError: there is none, its framework is not installed, or some class in it does not
            exist or refuses its arguments.
    """
    if 'model' not in cfg:
        raise ConfigError(f'{cfg.filename} has no model')
    check_installed(cfg.get('default_scope'))
    revert_sync_bn(cfg)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return MODELS.build(cfg.model)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f'the model of {cfg.filename} cannot be built: {error}') from error
