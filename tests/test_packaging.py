"""What setup.py declares and ships, and the two commands of the README."""
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import setuptools
import yaml
from set_up_copy import ROOT, load_tools

from xvit_mm.utils.shipped_configs import list_configs


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that setup.py gives to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **arguments: given.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / 'setup.py'))
    return given


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """quickstart and selftest of a copied checkout whose environment is this one."""
    found = load_tools(tmp_path / 'checkout')
    stack = found.stacks.STACKS['onedl']
    stack.python.parent.mkdir(parents=True)
    stack.python.symlink_to(sys.executable)
    monkeypatch.setattr(found.environment, 'ensure', lambda key: stack)
    monkeypatch.setattr(sys, 'argv', ['quickstart.py'])
    return found


def test_installing_the_package_pulls_no_openmmlab_distribution(declared: dict[str, Any]) -> None:
    assert declared['install_requires'] == ['torch>=2.1', 'einops', 'typing_extensions']
    assert declared['python_requires'] == '>=3.10'


def test_the_extras_hold_one_family_each(declared: dict[str, Any]) -> None:
    onedl, upstream = (declared['extras_require'][name] for name in ('onedl', 'upstream'))
    names = [{re.split('[=<>]', line)[0] for line in lines} for lines in (onedl, upstream)]
    assert sum(name.startswith('onedl-') for name in names[0]) == 5
    assert {'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain'} <= names[1]
    assert not any(name.startswith('mm') for name in names[0])
    assert not any(name.startswith('onedl') for name in names[1])


@pytest.mark.parametrize('family', ['onedl', 'upstream', 'upstream-newest'])
def test_extras_and_constraints_agree(declared: dict[str, Any], family: str) -> None:
    constraints = (ROOT / 'tools' / f'constraints-{family}.txt').read_text().splitlines()
    extras = declared['extras_require'][family] + declared['extras_require']['dev']
    assert all(line in constraints for line in extras if '==' in line)


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, as far as building takes part in it."""
    source = tmp_path_factory.mktemp('source')
    for folder in ('xvit_mm', 'configs', 'tools'):
        shutil.copytree(ROOT / folder, source / folder,
                        ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('setup.py', 'model-index.yml', 'MANIFEST.in', 'README.md', 'LICENSE', 'NOTICE'):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope='module')
def built(source: Path) -> Path:
    """The package as a wheel has it."""
    subprocess.run([sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', 'built'],
                   cwd=source, check=True, capture_output=True)
    assert not (source / 'xvit_mm' / '.mim').exists()
    return source / 'built' / 'xvit_mm'


def test_the_built_package_holds_configs_and_tools_where_mim_looks(built: Path) -> None:
    for source, target in (('xvit_mm', built), ('configs', built / '.mim' / 'configs'),
                           ('tools', built / '.mim' / 'tools')):
        wanted = {path.relative_to(ROOT / source) for path in (ROOT / source).rglob('*')
                  if path.suffix in ('.py', '.yml') and '.mim' not in path.parts}
        assert wanted <= {path.relative_to(target) for path in target.rglob('*')}


def test_mim_finds_every_config_of_the_built_package_by_its_index(built: Path) -> None:
    folder = built / '.mim'
    models = []
    for metafile in yaml.safe_load((folder / 'model-index.yml').read_text())['Import']:
        models += yaml.safe_load((folder / metafile).read_text())['Models']
    configs = {path.relative_to(ROOT).as_posix() for path in list_configs(ROOT / 'configs')}
    assert {model['Config'] for model in models} == configs
    for model in models:
        # `mim train xvit_mm NAME` looks for a file of this name below the package.
        found = list(built.rglob(Path(model['Config']).name))
        assert found == [folder / model['Config']]
    assert (folder / 'tools' / 'train.py').is_file() and (folder / 'tools' / 'test.py').is_file()


def test_the_built_package_finds_its_configs_by_present_and_old_names(built: Path) -> None:
    code = "import xvit_mm; print(xvit_mm.cfg('r18_cifar10'), xvit_mm.cfg('resnet18_cifar10'))"
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=built.parent, check=True, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(built.parent)})
    folder = built / '.mim' / 'configs'
    assert found.stdout.split()[-2:] == [
        str(folder / 'small' / 'r18_cifar10.py'), str(folder / 'renamed' / 'resnet18_cifar10.py')]
    assert "'resnet18_cifar10' is now called 'r18_cifar10'" in found.stderr


def test_the_source_archive_holds_what_the_build_needs(source: Path) -> None:
    subprocess.run([sys.executable, 'setup.py', '-q', 'sdist'], cwd=source, check=True,
                   capture_output=True)
    with tarfile.open(next((source / 'dist').iterdir())) as archive:
        held = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    needed = [path for folder in ('xvit_mm', 'configs', 'tools')
              for path in (source / folder).rglob('*') if path.suffix in ('.py', '.yml', '.txt')]
    assert {path.relative_to(source) for path in needed} <= held
    names = ('setup.py', 'model-index.yml', 'README.md', 'LICENSE', 'NOTICE')
    assert {Path(name) for name in names} <= held


@pytest.mark.parametrize('given, expected', [
    ([], []),
    (['-x', '-k', 'cross'], ['-x', '-k', 'cross']),
    (['--quick'], ['-m', 'not slow and not training']),
    (['--all', 'tests/test_x.py::test_y'], ['-m', '', 'tests/test_x.py::test_y']),
    (['--', '--lf'], ['--lf']),
])
def test_selftest_hands_its_arguments_to_pytest(
    commands: SimpleNamespace, given: list[str], expected: list[str],
) -> None:
    (commands.root / 'tests').mkdir()
    (commands.root / 'tests' / 'test_x.py').write_text('')
    start = ['-n', '2', '--dist', 'worksteal']
    assert commands.selftest.read_arguments(given) == ('onedl', start + expected)
    both = commands.selftest.read_arguments(['--stack', 'upstream', *given])
    assert both == ('upstream', start + expected)


@pytest.mark.parametrize('program, arguments', [
    ('selftest', ['tests/test_nothing.py']),
    ('selftest', ['--stack', 'other']), ('quickstart', ['--epochs', '3'])])
def test_arguments_are_read_before_anything_is_set_up(
    commands: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    program: str, arguments: list[str],
) -> None:
    monkeypatch.setattr(sys, 'argv', [f'{program}.py', *arguments])
    monkeypatch.setattr(commands.environment, 'ensure', lambda key: pytest.fail('set up'))
    with pytest.raises(SystemExit) as ended:
        getattr(commands, program).main()
    assert ended.value.code == 2 and arguments[0].split('.')[0] in capsys.readouterr().err


def write_programs(root: Path, training: str) -> None:
    (root / 'tools' / 'make_demo_data.py').write_text('print("data made")')
    (root / 'tools' / 'train.py').write_text(training)


def test_quickstart_runs_the_demo_and_names_the_results(
    commands: SimpleNamespace, capfd: pytest.CaptureFixture,
) -> None:
    write_programs(commands.root, 'import sys; print("trained", sys.argv[1:])')
    results = commands.root / 'work_dirs' / 'demo' / 'run' / 'vis_data'
    results.mkdir(parents=True)
    records = [{'loss': 1.0}, {'coco/bbox_mAP': 0.25}, {'coco/bbox_mAP': 0.5, 'step': 2}]
    (results / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    (results / 'start.json').write_text('not a list of records')
    (commands.root / 'work_dirs' / 'demo' / 'pictures').mkdir()
    assert commands.quickstart.main() == 0
    output = capfd.readouterr().out
    assert output.index('data made') < output.index('trained') < output.index('0.500')
    assert 'work_dirs/demo/pictures: predictions' in output
    assert 'work_dirs/demo/curves.png: loss and AP, missing' in output


def test_quickstart_goes_on_with_an_interrupted_training(
    commands: SimpleNamespace, capfd: pytest.CaptureFixture,
) -> None:
    write_programs(commands.root, 'import sys; print("resumed:", "--resume" in sys.argv)')
    work_dir = commands.root / commands.quickstart.WORK_DIR
    work_dir.mkdir(parents=True)
    commands.quickstart.main()
    (work_dir / 'epoch_3.pth').touch()  # also without last_checkpoint
    commands.quickstart.main()
    output = capfd.readouterr().out
    assert output.index('resumed: False') < output.index('resumed: True')


def test_a_failed_demo_gives_one_message_and_a_non_zero_exit(
    commands: SimpleNamespace, capfd: pytest.CaptureFixture,
) -> None:
    write_programs(commands.root, 'import sys; sys.exit("no such dataset")')
    assert commands.environment.run_guarded(commands.quickstart.main) == 1
    errors = capfd.readouterr().err
    assert 'no such dataset' in errors and 'ended with status 1' in errors
    assert 'Traceback' not in errors
