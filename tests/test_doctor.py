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
from other_environments import ROOT, make_environment
from set_up_copy import tools

__all__ = ['tools']  # a fixture
LIBGL = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
SYMBOL = 'ImportError: _ext.so: undefined symbol: _ZN3c105ErrorC2ENS'
NO_MODULE = "ModuleNotFoundError: No module named '{}'"
BUILD = '--no-cache-dir --no-binary '
OTHER_PYTHON = '/env/bin/python'


class Environment:
    """What the probe finds in an environment of a stack in which everything imports."""

    def __init__(self, tools: SimpleNamespace, key: str = 'onedl') -> None:
        stack = tools.stacks.STACKS[key]
        names = [*stack.packages.values(), 'torch', 'torchvision', 'numpy']
        self.tools, self.distributions = tools, {name: stack.pins[name] for name in names}
        self.modules = {name: {'version': '1.0', 'path': f'/env/{name}.py'}
                        for name in tools.doctor.NEEDED + tools.doctor.OPTIONAL}

    def examine(
        self, errors: Mapping[str, str] = MappingProxyType({}), python: str = OTHER_PYTHON
    ) -> dict[str, Any]:
        """Subject -> finding, where some imports fail."""
        failed = {name: {'error': error} for name, error in errors.items()}
        facts = self.tools.facts.Facts(python, (3, 11, 7), self.distributions,
                                       {**self.modules, **failed})
        self.tools.doctor.gather = lambda *args: facts
        return {one.subject: one for one in self.tools.doctor.examine(python)}


def broken(report: dict[str, Any]) -> list[str]:
    return [subject for subject, one in report.items() if one.level == 'broken']


@pytest.mark.parametrize('key', ['onedl', 'upstream', 'upstream-newest'])
def test_a_healthy_environment_has_nothing_to_repair(
    tools: SimpleNamespace, key: str, capsys: pytest.CaptureFixture,
) -> None:
    report = Environment(tools, key).examine()
    assert not any(one.remedy for one in report.values())
    assert report['family'].text.lower().startswith(key.partition('-')[0])
    assert tools.doctor.report(list(report.values())) == 0
    assert '/env/mmcv.py' in capsys.readouterr().out


@pytest.mark.parametrize('cause, error', [('torch', NO_MODULE.format('torch')), ('cv2', LIBGL)])
def test_packages_that_fail_for_the_same_reason_point_to_the_first(
    tools: SimpleNamespace, cause: str, error: str,
) -> None:
    report = Environment(tools).examine({'mmengine': error, cause: error})
    assert report['mmengine'].text == f'needs {cause}, see there'
    assert report[cause].remedy and not report['mmengine'].remedy


@pytest.mark.parametrize('key, module, error, words, command', [
    ('onedl', 'cv2', LIBGL, 'libGL.so.1', 'sudo apt-get install -y libgl1'),
    ('onedl', 'mmcv', NO_MODULE.format('mmcv'), 'not installed', BUILD + 'onedl-mmcv'),
    ('onedl', 'mmcv.ops', SYMBOL, 'another torch', BUILD + 'onedl-mmcv onedl-mmcv==2.3.6'),
    ('upstream', 'mmcv.ops', SYMBOL, 'another torch', BUILD + 'mmcv mmcv==2.1.0'),
    ('upstream-newest', 'mmcv.ops', SYMBOL, 'another torch', BUILD + 'mmcv mmcv==2.2.0'),
    ('onedl', 'mmcv.ops', 'RuntimeError: nms_impl: implementation for device cuda:0 not found.',
     'CPU ops only', BUILD + 'onedl-mmcv'),
    # The newer opencv that came with numpy 2 would ask for it again.
    ('upstream', 'torch.from_numpy', 'RuntimeError: Numpy is not available', 'numpy 2',
     'pip install numpy==1.26.4 opencv-python==4.11.0.86'),
    ('onedl', 'torchvision', 'RuntimeError: operator torchvision::nms does not exist',
     'another torch', 'torchvision==0.27.*'),
    ('onedl', 'torchvision', "RuntimeError: Couldn't load custom C++ ops.", 'another torch',
     'torchvision==0.27.*'),
    ('onedl', 'torch', SYMBOL, 'torch does not fit', 'torch==2.12.1 "torchvision==0.27.*"'),
    ('onedl', 'mmdet', NO_MODULE.format('shapely'), 'does not import', 'pip install shapely'),
    ('upstream-newest', 'mmdet', 'AssertionError: MMCV==2.2.0 is used but incompatible', '<2.2.0',
     'docs/stacks.md'),
])
def test_a_known_failure_has_its_command(
    tools: SimpleNamespace, key: str, module: str, error: str, words: str, command: str,
) -> None:
    report = Environment(tools, key).examine({module: error})
    assert words in report[module].text and command in report[module].remedy
    assert broken(report) == [module]


@pytest.mark.parametrize('subject, change, errors, words, command', [
    ('mmseg', {}, {'mmseg': NO_MODULE.format('mmseg')}, 'not installed',
     'pip install onedl-mmsegmentation'),
    ('family', {'onedl-mmcv': '2.3.5'}, {}, 'onedl-mmcv 2.3.5 (tested: 2.3.6)', 'onedl-mmcv==2.3.6'),
    ('PYTHONPATH', {}, {}, '/ros/site-packages', 'unset PYTHONPATH'),
])
def test_what_is_unusual_is_a_note(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, subject: str, change: dict[str, str],
    errors: dict[str, str], words: str, command: str,
) -> None:
    if subject == 'PYTHONPATH':
        monkeypatch.setenv('PYTHONPATH', '/ros/site-packages')
    environment = Environment(tools)
    environment.distributions.update(change)
    notes = [one for one in environment.examine(errors).values() if one.level != 'ok']
    assert [(one.level, one.subject) for one in notes] == [('note', subject)]
    assert words in notes[0].text and command in notes[0].remedy


def test_torchvision_is_taken_for_the_torch_that_is_there(tools: SimpleNamespace) -> None:
    environment = Environment(tools)
    environment.distributions['torch'] = '2.11.0+cpu'
    remedy = environment.examine({'torchvision': SYMBOL})['torchvision'].remedy
    assert remedy.endswith('"torchvision==0.26.*" --index-url https://download.pytorch.org/whl/cpu')


def test_what_a_build_lacks_is_named_before_its_command(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tools.remedies, 'has_compiler', lambda: False)
    environment = Environment(tools)
    environment.modules['torch'].update(gpu='NVIDIA H100', cuda='13.0', nvcc='')
    remedy = environment.examine({'mmcv.ops': SYMBOL})['mmcv.ops'].remedy
    assert remedy.startswith('sudo apt-get install -y g++ python3-dev && install the CUDA 13.0 tool')
    assert 'FORCE_CUDA=1' in remedy


@pytest.mark.parametrize('other, level, text', [
    ('onedl-mmengine', 'note', 'enough for backbones'), ('mmdet', 'broken', 'need nms'),
    ('mmcv', 'broken', 'beside mmcv')])
def test_mmcv_lite_is_enough_where_nothing_needs_its_ops(
    tools: SimpleNamespace, other: str, level: str, text: str,
) -> None:
    environment = Environment(tools, 'upstream')
    environment.distributions = {'mmcv-lite': '2.1.0', other: '2.1.0'}
    finding = environment.examine({'mmcv.ops': NO_MODULE.format('mmcv._ext')})['mmcv.ops']
    assert finding.level == level and text in finding.text
    assert ('uninstall -y mmcv-lite && ' in finding.remedy) == (level == 'broken')


@pytest.mark.parametrize('name', ['python', 'python3'])
def test_in_the_project_environment_one_command_repairs(tools: SimpleNamespace, name: str) -> None:
    python = str(tools.stacks.STACKS['onedl'].python.with_name(name))
    errors = {'cv2': LIBGL, 'mmcv.ops': SYMBOL, 'mmdet': NO_MODULE.format('shapely')}
    report = Environment(tools).examine(errors, python)
    command = 'python3 tools/environment.py --repair'
    assert report['mmcv.ops'].remedy == report['mmdet'].remedy == command
    assert report['cv2'].remedy.endswith(f'\nor, without root: {command}')


@pytest.mark.parametrize('project', [False, True])
def test_both_families_are_uninstalled_for_one(tools: SimpleNamespace, project: bool) -> None:
    environment = Environment(tools)
    environment.distributions.update({'mmcv': '2.1.0', 'mmdet': '3.3.0'})
    python = str(tools.stacks.STACKS['upstream'].python) if project else OTHER_PYTHON
    finding = environment.examine(python=python)['family']
    assert finding.level == 'broken' and 'overwrite each other' in finding.text
    uninstall, *install = finding.remedy.split('\n')
    assert 'uninstall -y onedl-mmcv' in uninstall and uninstall.endswith(' mmcv mmdet')
    if project:
        assert install == ['python3 tools/environment.py --stack upstream']
    else:
        assert install[0] == 'STACK=onedl   # or STACK=upstream' and '$STACK.txt' in install[2]


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
