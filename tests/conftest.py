"""Settings of the test session."""
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

# The helpers beside the tests: golden.py, small_models.py.
sys.path.insert(0, str(Path(__file__).parent))
# What makes the repository's own pages: the package `zoo` in tools/.
sys.path.append(str(Path(__file__).parents[1] / 'tools'))
# Test models are tiny: more threads only wait for one another.
torch.set_num_threads(1)

# Property tests (test_properties.py): CI runs the same few examples every time; more of them with
# --hypothesis-profile=thorough.
with suppress(ImportError):
    from hypothesis import HealthCheck, Phase, settings
    for name, examples in (('ci', 8), ('thorough', 500)):
        settings.register_profile(
            name, max_examples=examples, deadline=None, derandomize=name == 'ci', database=None,
            suppress_health_check=[HealthCheck.too_slow],
            # To shrink a failing example takes minutes.
            phases=[p for p in Phase if name == 'thorough' or p is not Phase.shrink])
    settings.load_profile('ci')

# Modules that train, evaluate, export or start programs throughout: `--quick` leaves them out.
TRAINING = {
    'test_benchmark', 'test_check_dataset', 'test_compare_runs', 'test_compile', 'test_complexity',
    'test_curves', 'test_data_errors', 'test_dataset_mistakes', 'test_distributed',
    'test_draw_attention', 'test_draw_tokens', 'test_export', 'test_hooks', 'test_launches',
    'test_onnx', 'test_own_data', 'test_packaging', 'test_pictures_hook', 'test_predict',
    'test_predict_inputs', 'test_progress_bar', 'test_properties', 'test_protocols', 'test_recipes',
    'test_resuming', 'test_runner', 'test_several_processes', 'test_swap', 'test_swap_shipped',
    'test_tools', 'test_vt_weights', 'test_zoo',
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in TRAINING:
            item.add_marker('training')


@pytest.fixture(autouse=True)
def no_globals_of_mmengine():
    """Its default scope and loggers are global: a runner of one test must not choose the scope of
    the next, and a logger made in one writes to a stream that pytest closes."""
    DefaultScope._instance_dict.clear()
    MMLogger._instance_dict.clear()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is written to mmengine's log, which `caplog` does not see."""
    logger, stream = MMLogger.get_current_instance(), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)
