"""The doctor: what it says of healthy, incomplete and broken environments."""
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from other_environments import make_environment
from set_up_copy import tools

__all__ = ['tools']  # a fixture
TOOLS = Path(__file__).resolve().parent.parent / 'tools'
LIBGL = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
SYMBOL = 'ImportError: _ext.so: undefined symbol: _ZN3c105ErrorC2ENS'
CUDART = 'OSError: libcudart.so.13: cannot open shared object file: No such file or directory'
NO_OPS = "ModuleNotFoundError: No module named 'mmcv._ext'"
PKG = "ModuleNotFoundError: No module named 'pkg_resources'"
BUILD = '--no-cache-dir --no-binary '
OTHER_PYTHON = '/env/bin/python'


class Environment:
    """What the probe finds in an environment of a stack in which everything imports."""

    def __init__(self, tools: SimpleNamespace, key: str = 'onedl') -> None:
        stack = tools.stacks.STACKS[key]
        pins, names = stack.pins, [*stack.packages.values(), 'torch', 'torchvision', 'numpy']
        self.tools, self.distributions = tools, {name: pins[name] for name in names}
        self.modules = {name: {'version': '1.0', 'path': f'/env/{name}.py'}
                        for name in tools.doctor.NEEDED + tools.doctor.OPTIONAL}
        self.modules['torch'].update(cuda='13.0', gpu=None)

    def examine(
        self, errors: Mapping[str, str] = MappingProxyType({}), python: str = OTHER_PYTHON
    ) -> dict[str, Any]:
        """Subject -> finding, where some imports fail."""
        broken = {name: {'error': error, 'own': '/env/x.py:7'} for name, error in errors.items()}
        facts = self.tools.facts.Facts(python, (3, 11, 7), self.distributions,
                                       {**self.modules, **broken})
        self.tools.doctor.gather = lambda *args: facts
        return {one.subject: one for one in self.tools.doctor.examine(python)}


def broken(report: dict[str, Any]) -> list[str]:
    return [subject for subject, one in report.items() if one.level == 'broken']


@pytest.mark.parametrize('key', ['onedl', 'upstream', 'upstream-newest'])
def test_a_healthy_environment_has_nothing_broken(
    tools: SimpleNamespace, key: str, capsys: pytest.CaptureFixture,
) -> None:
    report = Environment(tools, key).examine()
    assert not broken(report) and 'versions' not in report
    assert report['family'].text.lower().startswith(key.partition('-')[0])
    assert tools.doctor.report(list(report.values())) == 0
    assert '/env/mmcv.py' in capsys.readouterr().out


@pytest.mark.parametrize('cause, error', [
    ('torch', "ModuleNotFoundError: No module named 'torch'"), ('cv2', LIBGL)])
def test_packages_that_fail_for_the_same_reason_point_to_the_first(
    tools: SimpleNamespace, cause: str, error: str,
) -> None:
    report = Environment(tools).examine({'mmengine': error, cause: error})
    assert report['mmengine'].text == f'needs {cause}, see there'
    assert report[cause].remedy and not report['mmengine'].remedy


@pytest.mark.parametrize('key, module, error, words, command', [
    ('onedl', 'cv2', LIBGL, 'libGL.so.1', 'sudo apt-get install -y libgl1'),
    ('onedl', 'cv2', 'ImportError: numpy.core.multiarray failed to import', 'another numpy',
     '"numpy>=2,<2.3" "opencv-python>=4.12,<4.13"'),
    ('onedl', 'mmcv._ext', SYMBOL, 'another torch', BUILD + 'onedl-mmcv onedl-mmcv==2.3.6'),
    ('upstream', 'mmcv._ext', SYMBOL, 'another torch', BUILD + 'mmcv mmcv==2.1.0'),
    ('upstream-newest', 'mmcv._ext', SYMBOL, 'another torch', BUILD + 'mmcv mmcv==2.2.0'),
    ('onedl', 'mmcv._ext', NO_OPS, 'without its compiled ops', BUILD + 'onedl-mmcv'),
    ('onedl', 'mmcv.ops', 'RuntimeError: nms_impl: implementation for device cuda:0 not found.',
     'CPU ops only', BUILD + 'onedl-mmcv'),
    ('onedl', 'torch.from_numpy', 'RuntimeError: Numpy is not available', 'numpy 2',
     '"numpy>=2,<2.3"'),
    # The newer opencv that came with numpy 2 would ask for it again.
    ('upstream', 'torch.from_numpy', 'RuntimeError: Numpy is not available', 'numpy 2',
     'install "numpy<2" "opencv-python<4.12"'),
    ('onedl', 'xvit_mm', "AttributeError: module 'numpy._core' has no attribute 'x'",
     'this package itself fails, in /env/x.py:7', 'restore xvit_mm'),
    ('onedl', 'torchvision', 'RuntimeError: operator torchvision::nms does not exist',
     'another torch', 'torchvision==0.27.*'),
    ('onedl', 'torchvision', "RuntimeError: Couldn't load custom C++ ops.", 'another torch',
     'torchvision==0.27.*'),
    ('onedl', 'torchvision', "NotImplementedError: Could not run 'torchvision::nms' with arguments "
     "from the 'CUDA' backend.", 'in flavour (CPU or CUDA)', 'torchvision==0.27.*'),
    ('onedl', 'torchvision', SYMBOL, 'belongs to another torch', 'torchvision==0.27.*'),
    ('onedl', 'torch', SYMBOL, 'torch does not fit', '"torch==2.12.1" "torchvision==0.27.*"'),
    ('onedl', 'torch', CUDART, 'torch does not fit', 'pip uninstall -y torch torchvision && '),
    ('onedl', 'mmdet', PKG, 'setuptools 82', 'setuptools>=80,<82'),
    ('onedl', 'mmengine.is_installed', PKG, 'setuptools 82', 'setuptools>=80,<82'),
    ('onedl', 'mmdet', "ModuleNotFoundError: No module named 'shapely'", 'does not import',
     'pip install shapely'),
    ('upstream-newest', 'mmdet', 'AssertionError: MMCV==2.2.0 is used but incompatible', '<2.2.0',
     BUILD + 'mmcv mmcv==2.1.0\nor, to keep it, see "Newest of upstream" in docs/stacks.md'),
])
def test_each_known_failure_has_its_command(
    tools: SimpleNamespace, key: str, module: str, error: str, words: str, command: str,
) -> None:
    finding = Environment(tools, key).examine({module: error})[module]
    assert finding.level == 'broken' and words in finding.text and command in finding.remedy


@pytest.mark.parametrize('subject, level, change, errors, words, command', [
    ('mmcv', 'broken', {}, dict.fromkeys(['mmcv', 'mmcv._ext', 'mmcv.ops'], "ModuleNotFoundError: No "
     "module named 'mmcv'"), 'not installed', BUILD + 'onedl-mmcv'),
    ('mmseg', 'note', {}, {'mmseg': "ModuleNotFoundError: No module named 'mmseg'"}, 'not installed',
     'pip install onedl-mmsegmentation'),
    ('versions', 'note', {'onedl-mmcv': '2.3.5'}, {}, 'onedl-mmcv 2.3.5 (tested: 2.3.6)',
     'onedl-mmcv==2.3.6'),
    ('mmcv-lite', 'note', {'mmcv-lite': '2.1.0'}, {}, 'installed beside mmcv',
     'uninstall -y mmcv-lite && '),
    ('mmcv-lite', 'broken', {'mmcv-lite': '2.1.0'}, {'mmcv._ext': SYMBOL}, 'beside mmcv', ''),
    ('torchvision', 'broken', {'torch': '2.11.0+cpu'}, {'torchvision': SYMBOL}, 'another torch',
     '"torchvision==0.26.*" --index-url https://download.pytorch.org/whl/cpu'),
    ('PYTHONPATH', 'note', {}, {}, '/ros/site-packages', 'unset PYTHONPATH'),
])
def test_what_is_unusual_is_reported_once(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, subject: str, level: str,
    change: dict[str, str], errors: dict[str, str], words: str, command: str,
) -> None:
    if subject == 'PYTHONPATH':
        monkeypatch.setenv('PYTHONPATH', '/ros/site-packages')
    environment = Environment(tools, 'upstream' if subject == 'mmcv-lite' else 'onedl')
    environment.distributions.update(change)
    report = environment.examine(errors)
    finding = report[subject]
    assert finding.level == level and words in finding.text and command in finding.remedy
    assert broken(report) == [subject] * (level == 'broken')


def test_what_a_build_lacks_is_named_before_its_command(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.stacks, 'compiler', lambda: None)
    monkeypatch.setattr(tools.stacks, 'nvcc', lambda: None)
    environment = Environment(tools)
    environment.modules['torch']['gpu'] = 'NVIDIA H100'
    remedy = environment.examine({'mmcv._ext': SYMBOL})['mmcv._ext'].remedy
    assert remedy.startswith('sudo apt-get install -y g++ python3-dev && install the CUDA 13.0 tool')
    assert 'FORCE_CUDA=1' in remedy


@pytest.mark.parametrize('detectors', [False, True])
def test_mmcv_lite_is_enough_where_nothing_needs_its_ops(
    tools: SimpleNamespace, detectors: bool,
) -> None:
    environment = Environment(tools, 'upstream')
    names = environment.distributions
    names['mmcv-lite'] = names.pop('mmcv')
    if not detectors:
        del names['mmdet'], names['mmsegmentation']
    report = environment.examine({'mmcv._ext': NO_OPS, 'mmcv.ops': NO_OPS})
    assert report['mmcv-lite'].level == ('broken' if detectors else 'note')
    assert broken(report) == ['mmcv-lite'] * detectors
    assert ('uninstall -y mmcv-lite && ' in report['mmcv-lite'].remedy) == detectors


@pytest.mark.parametrize('name', ['python', 'python3'])
def test_in_the_project_environment_one_command_repairs(tools: SimpleNamespace, name: str) -> None:
    python = str(tools.stacks.STACKS['onedl'].python.with_name(name))
    report = Environment(tools).examine({'mmcv._ext': SYMBOL, 'cv2': LIBGL, 'torch': CUDART}, python)
    command = 'python3 tools/environment.py --repair'
    assert report['mmcv._ext'].remedy == report['torch'].remedy == command
    assert report['cv2'].remedy.endswith(f'\nor, without root: {command}')


@pytest.mark.parametrize('both', [False, True])
def test_both_families_and_none_name_both_ways_out(tools: SimpleNamespace, both: bool) -> None:
    environment = Environment(tools)
    environment.distributions.update({'mmcv': '2.1.0', 'mmdet': '3.3.0'})
    if not both:
        environment.distributions.clear()
    finding = environment.examine()['family']
    assert finding.level == 'broken' and ('overwrite each other' in finding.text) == both
    assert ('uninstall -y onedl-mmcv' in finding.remedy) == both
    assert '".[onedl]"' in finding.remedy and '".[upstream]"' in finding.remedy


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
    done = subprocess.run([sys.executable, str(TOOLS / 'doctor.py'), '--python', python],
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': ''})
    assert 'Traceback' not in done.stdout + done.stderr
    found = re.findall(r'^(ok|note|broken) +(\S+) +(.*(?:\n {26,}.*)*)', done.stdout, re.MULTILINE)
    assert done.returncode == any(level == 'broken' for level, _, _ in found)
    return {subject: (level, text) for level, subject, text in found}


@pytest.mark.training
def test_mmcv_without_its_ops_is_not_enough_for_detectors(tmp_path: Path) -> None:
    report = examine(make_environment(tmp_path / 'env', ops=False))
    if 'mmcv-lite' in report:
        level, text = report['mmcv-lite']
        assert 'uninstall -y mmcv-lite && ' in text
    else:
        level, text = report['mmcv._ext']
        assert 'without its compiled ops' in text
    assert level == 'broken' and 'MMCV_WITH_OPS=1' in text
    assert report['xvit_mm'][0] == report['mmcv'][0] == 'ok'


@pytest.mark.training
def test_a_damaged_copy_of_this_package_is_named_with_its_line(tmp_path: Path) -> None:
    package = tmp_path / 'xvit_mm'
    shutil.copytree(TOOLS.parent / 'xvit_mm', package)
    with open(package / 'registry.py', 'a') as file:
        file.write('\nimport numpy\nnumpy._core.lost\n')
    line = len((package / 'registry.py').read_text().splitlines())
    python = make_environment(tmp_path / 'env', package=package)
    level, text = examine(python)['xvit_mm']
    assert level == 'broken' and 'this package itself fails' in text
    assert f'xvit_mm/registry.py:{line}' in text and 'restore xvit_mm' in text


@pytest.mark.slow
def test_numpy_2_beside_a_torch_built_for_numpy_1_is_found(tmp_path: Path) -> None:
    if tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 3):
        pytest.skip('this torch takes numpy 2')
    report = examine(make_environment(tmp_path / 'env', install=['numpy==2.2.6']))
    level, text = report['torch.from_numpy']
    assert level == 'broken' and 'pip install "numpy<2" "opencv' in text


@pytest.mark.slow
def test_opencv_built_for_another_numpy_is_found(tmp_path: Path) -> None:
    if numpy.__version__ < '2':
        pytest.skip('later opencv loads with numpy 1, and earlier ones were built for it')
    report = examine(make_environment(tmp_path / 'env', install=['opencv-python==4.9.0.80']))
    level, text = report['cv2']
    assert level == 'broken' and 'pip install "numpy>=2,<2.3" "opencv-python' in text
    assert 'needs cv2, see there' in report['mmcv'][1]


def test_a_python_without_anything_gets_a_report_and_no_traceback(tmp_path: Path) -> None:
    bare = tmp_path / 'bare'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(bare)], check=True)
    done = subprocess.run([sys.executable, str(TOOLS / 'doctor.py'), '--python',
                           str(bare / 'bin' / 'python')], capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stdout + done.stderr
    assert 'no OpenMMLab packages' in done.stdout and 'broken: family, torch' in done.stdout


def test_a_python_that_does_not_run_gets_a_report_too() -> None:
    done = subprocess.run([sys.executable, str(TOOLS / 'doctor.py'), '--python', '/no/python'],
                          capture_output=True, text=True)
    assert done.returncode == 1 and '/no/python does not run' in done.stdout
