"""The doctor: what it says of healthy, incomplete and broken environments."""
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from other_environments import make_environment

TOOLS = Path(__file__).resolve().parent.parent / 'tools'
PARTS = ('bootstrap', 'bootstrap.stacks', 'bootstrap.facts', 'bootstrap.remedies', 'doctor')
LIBGL = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
SYMBOL = 'ImportError: _ext.so: undefined symbol: _ZN3c105ErrorC2ENS'
CUDART = 'OSError: libcudart.so.13: cannot open shared object file: No such file or directory'
NMS = 'RuntimeError: operator torchvision::nms does not exist'
OTHER_PYTHON = '/env/bin/python'


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The doctor's modules, freshly imported; tools/ is on the path for this test only."""
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in PARTS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name.split('.')[-1]: importlib.import_module(name) for name in PARTS}
    for name in PARTS:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv('PYTHONPATH', raising=False)
    return SimpleNamespace(**found)


def healthy(tools: SimpleNamespace, family: str = 'onedl') -> dict[str, Any]:
    """Records of an environment in which everything imports."""
    stack = tools.stacks.STACKS[family]
    names = [*stack.packages.values(), 'torch', 'torchvision', 'numpy']
    pins = stack.pins()
    modules = {name: {'name': name, 'version': '1.0', 'path': f'/env/{name}.py'}
               for name in tools.doctor.NEEDED + tools.doctor.OPTIONAL}
    modules['torch'].update(version=pins['torch'] + '+cu130', cuda='13.0', gpu=None)
    modules['torchvision'].update(version=pins['torchvision'] + '+cu130')
    modules['mmcv.ops'].update(cuda='not available')
    return {'distributions': {name: pins.get(name, '1.0') for name in names}, 'modules': modules}


def findings(
    tools: SimpleNamespace,
    environment: dict[str, Any],
    python: str = OTHER_PYTHON,
    **errors: str,
) -> dict[str, Any]:
    """Subject -> finding, where some imports fail; `mmcv__ext` stands for `mmcv._ext`."""
    modules = environment['modules']
    for name, error in errors.items():
        name = name.replace('__', '._' if name == 'mmcv__ext' else '.')
        modules[name] = {'name': name, 'error': error, 'own': [f'/env/{name}/x.py:7']}
    facts = tools.facts.Facts(python, (3, 11, 7), environment['distributions'], modules)
    tools.doctor.gather = lambda *args: facts
    return {one.subject: one for one in tools.doctor.examine(python)}


def broken(report: dict[str, Any]) -> list[str]:
    return [subject for subject, one in report.items() if one.level == 'broken']


@pytest.mark.parametrize('family', ['onedl', 'upstream', 'upstream-newest'])
def test_a_healthy_environment_of_either_family_has_nothing_broken(
    tools: SimpleNamespace, family: str, capsys: pytest.CaptureFixture,
) -> None:
    report = findings(tools, healthy(tools, family))
    assert not broken(report) and report['family'].text.lower().startswith(
        family.partition('-')[0])
    assert tools.doctor.report(list(report.values())) == 0
    assert '/env/mmcv.py' in capsys.readouterr().out


def test_something_broken_gives_a_non_zero_exit(
    tools: SimpleNamespace, capsys: pytest.CaptureFixture,
) -> None:
    report = findings(tools, healthy(tools), torch="ModuleNotFoundError: No module named 'torch'")
    assert tools.doctor.report(list(report.values())) == 1
    assert 'repair: /env/bin/python -m pip install torch' in capsys.readouterr().out


@pytest.mark.parametrize('cause, error', [
    ('torch', "ModuleNotFoundError: No module named 'torch'"), ('cv2', LIBGL)])
def test_packages_that_fail_for_the_same_reason_point_to_the_first(
    tools: SimpleNamespace, cause: str, error: str,
) -> None:
    report = findings(tools, healthy(tools), mmengine=error, **{cause: error})
    assert report['mmengine'].text == f'needs {cause}, see there'
    assert report[cause].remedy and not report['mmengine'].remedy


@pytest.mark.parametrize('module, error, words, command', [
    ('cv2', LIBGL, 'libGL.so.1', 'sudo apt-get install -y libgl1'),
    ('mmcv__ext', SYMBOL, 'another torch', '--no-cache-dir --no-binary onedl-mmcv'),
    ('cv2', 'ImportError: numpy.core.multiarray failed to import', 'built for another numpy',
     '"numpy>=2,<2.3" "opencv-python>=4.12,<4.13"'),
    ('torch__from_numpy', 'RuntimeError: Numpy is not available', 'numpy 2', '"numpy>=2,<2.3"'),
    ('xvit_mm', "AttributeError: module 'numpy._core' has no attribute 'x'",
     'this package itself fails, in ', 'restore xvit_mm'),
    ('mmcv__ext', "ModuleNotFoundError: No module named 'mmcv._ext'", 'without its compiled ops',
     '--no-cache-dir --no-binary onedl-mmcv'),
    ('torchvision', NMS, 'another torch', 'torchvision==0.27.*'),
    ('torchvision', "RuntimeError: Couldn't load custom C++ ops.", 'another torch',
     'torchvision==0.27.*'),
    ('torchvision', SYMBOL, 'torchvision belongs to another torch', 'torchvision==0.27.*'),
    ('torch', SYMBOL, 'torch does not fit', 'pip install "torch==2.12.1" "torchvision==0.27.*"'),
    ('torch', CUDART, 'torch does not fit', 'pip uninstall -y torch torchvision && '),
    ('mmdet', "ModuleNotFoundError: No module named 'pkg_resources'", 'setuptools 82',
     'setuptools>=80,<82'),
    ('mmengine__is_installed', "ModuleNotFoundError: No module named 'pkg_resources'",
     'setuptools 82', 'setuptools>=80,<82'),
    ('mmdet', "ModuleNotFoundError: No module named 'shapely'", 'does not import',
     'pip install shapely'),
])
def test_each_known_failure_has_its_command(
    tools: SimpleNamespace, module: str, error: str, words: str, command: str,
) -> None:
    report = findings(tools, healthy(tools), **{module: error})
    finding = report[module.replace('__', '._' if module == 'mmcv__ext' else '.')]
    assert finding.level == 'broken' and words in finding.text
    assert command in finding.remedy


def test_the_upstream_family_gets_upstream_commands(tools: SimpleNamespace) -> None:
    environment = healthy(tools, 'upstream')
    report = findings(tools, environment, mmcv__ext=SYMBOL,
                      torch__from_numpy='RuntimeError: Numpy is not available')
    assert '--no-binary mmcv "mmcv>=2.1.0,<2.2.0"' in report['mmcv._ext'].remedy
    # The newer opencv that came with numpy 2 would ask for it again.
    assert report['torch.from_numpy'].remedy.endswith('install "numpy<2" "opencv-python<4.12"')


def test_mmcv_2_2_is_kept_with_the_packages_that_take_it(tools: SimpleNamespace) -> None:
    environment = healthy(tools, 'upstream-newest')
    refused = 'AssertionError: MMCV==2.2.0 is used but incompatible'
    report = findings(tools, environment, mmcv__ext=SYMBOL, mmdet=refused)
    assert report['mmcv._ext'].remedy.endswith('--no-binary mmcv "mmcv==2.2.0"')
    older, newer = report['mmdet'].remedy.splitlines()
    assert older.endswith('--no-binary mmcv "mmcv>=2.1.0,<2.2.0"')
    assert 'docs/stacks.md' in newer


@pytest.mark.parametrize('detectors', [False, True])
def test_mmcv_lite_is_enough_where_nothing_needs_its_ops(
    tools: SimpleNamespace, detectors: bool,
) -> None:
    environment = healthy(tools, 'upstream')
    names = environment['distributions']
    names['mmcv-lite'] = names.pop('mmcv')
    if not detectors:
        del names['mmdet'], names['mmsegmentation']
    report = findings(tools, environment, mmcv__ext="ModuleNotFoundError: No module named "
                      "'mmcv._ext'", mmcv__ops="ModuleNotFoundError: No module named 'mmcv._ext'")
    assert report['mmcv-lite'].level == ('broken' if detectors else 'note')
    assert broken(report) == ['mmcv-lite'] * detectors
    assert ('uninstall -y mmcv-lite && ' in report['mmcv-lite'].remedy) == detectors


def test_mmcv_lite_beside_mmcv_is_noted_while_the_ops_load(tools: SimpleNamespace) -> None:
    environment = healthy(tools, 'upstream')
    environment['distributions']['mmcv-lite'] = '2.1.0'
    finding = findings(tools, environment)['mmcv-lite']
    assert finding.level == 'note' and 'uninstall -y mmcv-lite && ' in finding.remedy
    assert broken(findings(tools, environment, mmcv__ext=SYMBOL)) == ['mmcv-lite']


def test_in_the_project_environment_one_command_repairs(tools: SimpleNamespace) -> None:
    for name in ('python', 'python3'):
        python = str(tools.stacks.STACKS['onedl'].python.with_name(name))
        report = findings(tools, healthy(tools), python, mmcv__ext=SYMBOL, cv2=LIBGL, torch=CUDART)
        for module in ('mmcv._ext', 'cv2', 'torch'):
            assert report[module].remedy == 'python3 tools/environment.py --repair'


def test_parts_of_a_missing_package_are_not_reported_again(tools: SimpleNamespace) -> None:
    missing = "ModuleNotFoundError: No module named 'mmcv'"
    environment = healthy(tools)
    environment['modules']['mmcv.ops'] = {'name': 'mmcv.ops', 'error': missing}
    report = findings(tools, environment, mmcv=missing, mmcv__ext=missing)
    assert broken(report) == ['mmcv']


def test_an_optional_package_may_be_missing(tools: SimpleNamespace) -> None:
    report = findings(tools, healthy(tools), mmseg="ModuleNotFoundError: No module named 'mmseg'")
    assert report['mmseg'].level == 'note' and not broken(report)
    assert report['mmseg'].remedy.endswith('pip install onedl-mmsegmentation')


def test_both_families_and_none_name_both_ways_out(tools: SimpleNamespace) -> None:
    both = healthy(tools)
    both['distributions'].update({'mmcv': '2.1.0', 'mmdet': '3.3.0'})
    finding = findings(tools, both)['family']
    assert finding.level == 'broken' and 'overwrite each other' in finding.text
    assert 'uninstall -y mmcv mmdet onedl-mmcv' in finding.remedy
    assert '".[onedl]"' in finding.remedy and '".[upstream]"' in finding.remedy
    none = dict(healthy(tools), distributions={})
    finding = findings(tools, none)['family']
    assert '".[onedl]"' in finding.remedy and '".[upstream]"' in finding.remedy


def test_another_version_of_the_stack_is_noted(tools: SimpleNamespace) -> None:
    environment = healthy(tools)
    environment['distributions']['onedl-mmcv'] = '2.3.5'
    finding = findings(tools, environment)['versions']
    assert finding.level == 'note' and 'onedl-mmcv 2.3.5 (tested: 2.3.6)' in finding.text


def test_torchvision_of_another_flavour_is_broken(tools: SimpleNamespace) -> None:
    environment = healthy(tools)
    environment['modules']['torch']['version'] = '2.12.1+cpu'
    environment['distributions']['torch'] = '2.12.1+cpu'
    finding = findings(tools, environment)['flavour']
    assert finding.level == 'broken'
    assert '--index-url https://download.pytorch.org/whl/cpu' in finding.remedy


def test_cpu_ops_beside_a_gpu_are_broken(tools: SimpleNamespace) -> None:
    environment = healthy(tools)
    environment['modules']['torch']['gpu'] = 'NVIDIA H100'
    report = findings(tools, environment)
    assert broken(report) == ['mmcv on GPU']
    assert report['mmcv on GPU'].remedy.startswith('FORCE_CUDA=1')


def test_a_foreign_pythonpath_is_noted(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('PYTHONPATH', '/ros/site-packages')
    assert findings(tools, healthy(tools))['PYTHONPATH'].level == 'note'


def test_a_module_that_crashes_python_does_not_hide_the_next(
    tools: SimpleNamespace, tmp_path: Path,
) -> None:
    (tmp_path / 'crashing.py').write_text('import os; os._exit(3)')
    (tmp_path / 'raising.py').write_text('raise OSError("no such library")')
    (tmp_path / 'sound.py').write_text('__version__ = "1.5"')
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    names = ['crashing', 'raising', 'sound']
    facts = tools.facts.gather(sys.executable, names, env)
    assert facts.modules['crashing']['error'].startswith('Python crashed: exit status 3')
    assert facts.modules['raising']['error'] == 'OSError: no such library'
    assert facts.modules['sound']['version'] == '1.5'


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
