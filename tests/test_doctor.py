"""The doctor: what it says of healthy, incomplete and broken environments."""
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from other_environments import ROOT, make_environment
from set_up_copy import tools

__all__ = ['tools']  # a fixture
LIBGL = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
SYMBOL = 'ImportError: _ext.so: undefined symbol: _ZN3c105ErrorC2ENS'
NO_MMCV = "ModuleNotFoundError: No module named 'mmcv'"
NO_OPS = "ModuleNotFoundError: No module named 'mmcv._ext'"
BUILD = '--no-cache-dir --no-binary'


def examine_fake(
    tools: SimpleNamespace, key: str = 'onedl', distributions: Mapping[str, str] = {},
    errors: Mapping[str, str] = {}, *, python: str = '/env/bin/python', **torch: str,
) -> list[Any]:
    """Return the findings, apart from what is fine, on an environment of a stack.

    Args:
        distributions: other versions than the tested ones; '' for what is not installed.
        errors: imports that fail; all others succeed.
        torch: what the import of torch finds.
    """
    stack = tools.stacks.STACKS[key]
    names = [*stack.packages.values(), 'torch', 'torchvision', 'numpy']
    versions = {**{name: stack.pins[name] for name in names}, **distributions}
    modules = {name: {'error': errors[name]} if name in errors else {}
               for name in tools.doctor.NEEDED + tools.doctor.OPTIONAL}
    modules['torch'].update(torch)
    facts = tools.facts.Facts(python, (3, 11, 7), dict(filter(all, versions.items())), modules)
    tools.doctor.gather = lambda *args: facts
    return [one for one in tools.doctor.examine(python) if one.level != 'ok']


@pytest.mark.parametrize('key', ['onedl', 'upstream', 'upstream-newest'])
def test_the_tested_versions_give_nothing_to_repair(tools: SimpleNamespace, key: str) -> None:
    assert examine_fake(tools, key) == []


@pytest.mark.parametrize('key, distributions, errors, expected', [
    ('onedl', {}, {'cv2': LIBGL}, 'broken cv2 .*libGL.so.1.*sudo apt-get install -y libgl1'),
    ('onedl', {}, {'mmcv': NO_MMCV}, f'broken mmcv not installed.*{BUILD} onedl-mmcv'),
    ('onedl', {}, {'mmcv.ops': SYMBOL}, f'another torch.*{BUILD} onedl-mmcv onedl-mmcv==2.3.6'),
    ('upstream', {}, {'mmcv.ops': SYMBOL}, f'another torch.*{BUILD} mmcv mmcv==2.1.0'),
    ('upstream-newest', {}, {'mmcv.ops': SYMBOL}, f'another torch.*{BUILD} mmcv mmcv==2.2.0'),
    ('onedl', {}, {'mmcv.ops': 'RuntimeError: nms_impl: implementation for device cuda:0 not found.'},
     f'broken mmcv.ops mmcv has CPU ops only.*{BUILD} onedl-mmcv'),
    # The newer opencv that came with numpy 2 would ask for it again.
    ('upstream', {}, {'torch.from_numpy': 'RuntimeError: Numpy is not available'},
     'cannot use numpy 2.*pip install numpy==1.26.4 opencv-python==4.11.0.86'),
    ('upstream', {}, {'torchvision': 'RuntimeError: operator torchvision::nms does not exist'},
     'broken torchvision .*belongs to another torch.*"torchvision==0.16.*"'),
    # Of torchvision 0.16 beside torch 2.13.
    ('onedl', {}, {'torchvision': "ModuleNotFoundError: No module named 'triton.backends'"},
     'another torch.*--force-reinstall --no-deps "torchvision==0.27.*"'),
    ('onedl', {'torch': '2.12.1+cpu'}, {'torchvision': "RuntimeError: Couldn't load custom C++ ops."},
     'another torch.*"torchvision==0.27.*" --index-url https://download.pytorch.org/whl/cpu$'),
    ('onedl', {}, {'torch': SYMBOL}, 'does not fit the CUDA libraries.*torch==2.12.1 "torchvision'),
    ('onedl', {}, {'mmdet': "ModuleNotFoundError: No module named 'shapely'"},
     'broken mmdet does not import.*pip install shapely'),
    ('upstream-newest', {}, {'mmdet': 'AssertionError: MMCV==2.2.0 is used but incompatible'},
     'broken mmdet .*<2.2.0.*"Newest of upstream" in docs/stacks.md'),
    ('onedl', {}, {'mmseg': "ModuleNotFoundError: No module named 'mmseg'"},
     'note mmseg not installed.*pip install onedl-mmsegmentation'),
    ('onedl', {'onedl-mmcv': '2.3.5'}, {}, r'note family .*2.3.5 \(tested: 2.3.6\).*onedl-mmcv==2.3.6'),
    ('upstream', {'mmcv-lite': '2.1.0'}, {}, 'note mmcv.ops mmcv-lite is beside mmcv'),
    ('upstream', {'mmcv-lite': '2.1.0', 'mmcv': ''}, {'mmcv.ops': NO_OPS},
     'broken mmcv.ops .*need nms and RoIAlign repair: .* uninstall -y mmcv-lite && '),
    ('upstream', {'mmcv-lite': '2.1.0', 'mmcv': '', 'mmdet': '', 'mmsegmentation': ''},
     {'mmcv.ops': NO_OPS}, 'note mmcv.ops mmcv-lite is enough for backbones, necks and heads$'),
    ('onedl', {'mmcv': '2.1.0', 'mmdet': '3.3.0'}, {}, 'broken family both .* overwrite each other.*'
     'uninstall -y onedl-mmcv .* mmcv mmdet STACK=onedl # or .*/constraints-.STACK.txt'),
])
def test_what_is_broken_or_unusual_is_said_once_with_its_command(
    tools: SimpleNamespace, key: str, distributions: dict[str, str], errors: dict[str, str],
    expected: str,
) -> None:
    finding, = examine_fake(tools, key, distributions, errors)
    assert re.search(expected, ' '.join(str(finding).split()))


@pytest.mark.parametrize('cause, error', [
    ('torch', "ModuleNotFoundError: No module named 'torch'"), ('cv2', LIBGL)])
def test_packages_that_fail_for_the_same_reason_point_to_the_first(
    tools: SimpleNamespace, cause: str, error: str,
) -> None:
    first, second = examine_fake(tools, errors={'mmengine': error, cause: error})
    assert (first.subject, second.text) == (cause, f'needs {cause}, see there')
    assert first.remedy and not second.remedy


def test_what_would_hide_packages_or_stop_a_build_is_named(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('PYTHONPATH', '/ros/site-packages')
    monkeypatch.setattr(tools.remedies, 'has_compiler', lambda: False)
    path, ops = examine_fake(tools, errors={'mmcv.ops': SYMBOL}, gpu='H100', cuda='13.0', nvcc='')
    assert '/ros/site-packages' in path.text and path.remedy == 'unset PYTHONPATH'
    assert ops.remedy.startswith('sudo apt-get install -y g++ python3-dev && install the CUDA 13.0 ')
    assert 'FORCE_CUDA=1' in ops.remedy


@pytest.mark.parametrize('name', ['python', 'python3'])
def test_in_the_project_environment_one_command_repairs(tools: SimpleNamespace, name: str) -> None:
    python = str(tools.stacks.STACKS['onedl'].python.with_name(name))
    cv2, ops = examine_fake(tools, errors={'cv2': LIBGL, 'mmcv.ops': SYMBOL}, python=python)
    assert ops.remedy == 'python3 tools/environment.py --repair'
    assert cv2.remedy.endswith(f'\nor, without root: {ops.remedy}')
    both, = examine_fake(tools, distributions={'mmdet': '3.3.0'}, python=python)
    assert both.remedy.endswith(' mmdet\npython3 tools/environment.py')


def test_a_module_that_crashes_python_does_not_hide_the_next(
    tools: SimpleNamespace, tmp_path: Path,
) -> None:
    (tmp_path / 'crashing.py').write_text('import os; os._exit(3)')
    (tmp_path / 'raising.py').write_text('raise OSError("no such library")')
    (tmp_path / 'sound.py').write_text('__version__ = "1.5"')
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    modules = tools.facts.gather(sys.executable, ['crashing', 'raising', 'sound'], env).modules
    assert modules['crashing']['error'].startswith('Python crashed: exit status 3')
    assert modules['raising']['error'] == 'OSError: no such library'
    assert modules['sound']['version'] == '1.5'


# --- environments that are really broken ----------------------------------------------------------


def examine(python: str) -> dict[str, tuple[str, str]]:
    """Subject -> (level, text with the command), from the program's output."""
    done = subprocess.run([sys.executable, str(ROOT / 'tools' / 'doctor.py'), '--python', python],
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': ''})
    assert 'Traceback' not in done.stdout + done.stderr
    found = re.findall(r'^(ok|note|broken) +(\S+) +(.*(?:\n {26,}.*)*)', done.stdout, re.MULTILINE)
    assert done.returncode == any(level == 'broken' for level, _, _ in found)
    return {subject: (level, text) for level, subject, text in found}


@pytest.mark.training
def test_an_environment_that_is_broken_in_several_ways(tmp_path: Path) -> None:
    package = tmp_path / 'xvit_mm'
    shutil.copytree(ROOT / 'xvit_mm', package)
    with open(package / 'registry.py', 'a') as file:
        file.write('\nimport numpy\nnumpy._core.lost\n')
    line = len((package / 'registry.py').read_text().splitlines())
    python = make_environment(tmp_path / 'env', ops=False, without=['pkg_resources'], package=package)
    report = examine(python)
    level, text = report['mmcv.ops']
    assert level == 'broken' and 'MMCV_WITH_OPS=1' in text and 'compiled ops' in text
    assert ('uninstall -y mmcv-lite && ' in text) == ('mmcv-lite' in text)
    level, text = report['mmengine.is_installed']
    # OneDL's mmengine does without.
    assert (level == 'broken') == ('install "setuptools>=80,<82"' in text) == (
        'upstream' in report['family'][1])
    level, text = report['xvit_mm']
    assert level == 'broken' and 'this package itself fails' in text
    assert f'xvit_mm/registry.py:{line}' in text and 'restore xvit_mm' in text
    assert report['mmcv'][0] == report['torch'][0] == 'ok'


@pytest.mark.slow
def test_numpy_2_beside_a_torch_built_for_numpy_1_is_found(tmp_path: Path) -> None:
    if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 3):
        pytest.skip('this torch takes numpy 2')
    report = examine(make_environment(tmp_path / 'env', install=['numpy==2.2.6']))
    level, text = report['torch.from_numpy']
    assert level == 'broken' and 'pip install numpy==1.26.4 opencv' in text


@pytest.mark.slow
def test_opencv_built_for_another_numpy_is_found(tmp_path: Path) -> None:
    if numpy.__version__ < '2':
        pytest.skip('later opencv loads with numpy 1, and earlier ones were built for it')
    report = examine(make_environment(tmp_path / 'env', install=['opencv-python==4.9.0.80']))
    level, text = report['cv2']
    assert level == 'broken' and 'pip install numpy==2.2.6 opencv-python==4.12.0.88' in text
    assert 'needs cv2, see there' in report['mmcv'][1]


def test_a_python_without_anything_gets_a_report(tmp_path: Path) -> None:
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'bare'], check=True)
    report = examine(str(tmp_path / 'bare' / 'bin' / 'python'))
    level, text = report['family']
    assert level == 'broken' and 'no OpenMMLab packages' in text and 'STACK=onedl' in text
    assert report['torch'][0] == report['xvit_mm'][0] == 'broken'


def test_a_python_that_does_not_run_gets_a_report_too() -> None:
    assert '/no/python does not run' in examine('/no/python')['Python'][1]
