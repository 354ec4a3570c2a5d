"""How the set-up comes to an mmcv whose ops fit the installed torch."""
import shutil
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import pytest
from set_up_copy import FakeRunner, checkout, error_of, install, make_ready, site_of, tools

__all__ = ['checkout', 'tools']  # fixtures


def mmcv_runner(tools: SimpleNamespace, *answers: Tuple[str, int, str]) -> FakeRunner:
    """A machine whose mmcv appears when installed; ops load unless an answer says otherwise."""
    make_ready(tools)
    for info in site_of(tools.root).glob('onedl_mmcv-*'):
        shutil.rmtree(info)
    runner = FakeRunner(tools, *answers, ('get_compiling_cuda', 0, 'ops: cpu'),
                        ('is_available', 0, 'cuda: none'))
    return runner


def variables_of_build(runner: FakeRunner) -> Dict[str, str]:
    return next(variables for text, variables in zip(runner.commands, runner.variables)
                if '--no-binary' in text)


def test_a_wheel_whose_ops_load_is_used(tools: SimpleNamespace) -> None:
    runner = mmcv_runner(tools)
    assert tools.steps.install_mmcv(runner.real) == 'from a wheel, cpu ops'
    assert runner.ran('--no-cache-dir --only-binary onedl-mmcv onedl-mmcv==')
    assert not runner.ran('--no-binary')
    assert tools.project_env.BUILT_FOR.read_text() == f'{tools.stack.pins()["torch"]} cpu\n'


def test_a_wheel_of_another_torch_is_replaced_by_a_build(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = iter([(1, 'undefined symbol: _ZN2at4_ops'), (0, 'ops: cpu')])
    runner = mmcv_runner(tools)
    answer = runner.run

    def run(command: List[str], env: Any = None) -> Tuple[int, str]:
        result = answer(command, env)
        if '--only-binary' in command:
            install(tools.root, 'onedl-mmcv', '2.3.6')
        return next(loads) if 'get_compiling_cuda' in ' '.join(command) else result

    runner.real.run = run
    monkeypatch.setenv('CFLAGS', '-march=native')
    assert tools.steps.install_mmcv(runner.real) == 'compiled, cpu ops'
    assert runner.ran('uninstall -y onedl-mmcv')
    assert runner.ran('--no-build-isolation --no-cache-dir --no-binary')
    variables = variables_of_build(runner)
    assert variables['CFLAGS'] == '-march=native -g0' and variables['FORCE_CUDA'] == '0'
    assert variables['CUDA_VISIBLE_DEVICES'] == '' and int(variables['MAX_JOBS']) >= 1


def test_mmcv_that_is_there_stays_and_one_of_another_torch_goes(tools: SimpleNamespace) -> None:
    runner = mmcv_runner(tools)
    install(tools.root, 'onedl-mmcv', tools.stack.pins()['onedl-mmcv'])
    assert tools.steps.install_mmcv(runner.real) == 'already there, cpu ops'
    assert not runner.ran(' install ')
    tools.project_env.BUILT_FOR.write_text('2.11.0 cpu\n')
    assert tools.steps.install_mmcv(runner.real) == 'from a wheel, cpu ops'
    assert runner.ran('uninstall -y onedl-mmcv')


@pytest.mark.parametrize('cuda, nvcc, expected', [
    ('13.0', 'release 13.0, V13.0.88', 'cuda'),
    ('13.0', 'release 12.4, V12.4.1', 'cpu'),
    ('none', 'release 13.0, V13.0.88', 'cpu'),
])
def test_cuda_ops_are_built_where_gpu_and_nvcc_agree(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, cuda: str, nvcc: str, expected: str,
) -> None:
    runner = FakeRunner(tools, ('is_available', 0, f'cuda: {cuda}'), ('--version', 0, nvcc))
    monkeypatch.setattr(tools.stack, 'nvcc', lambda: '/usr/bin/nvcc')
    assert tools.steps.ops_to_build(runner.real) == expected
    hidden = tools.steps.build_variables(expected).get('CUDA_VISIBLE_DEVICES')
    assert hidden == ('' if expected == 'cpu' else None)


def test_opencv_without_libgl_is_replaced_by_its_headless_variant(tools: SimpleNamespace) -> None:
    libgl = 'ImportError: libGL.so.1: cannot open shared object file'
    runner = FakeRunner(tools, ('import cv2', 1, libgl))
    message = error_of(lambda: tools.steps.use_opencv_that_loads(runner.real),
                       tools.children.SetupError)
    assert runner.ran('--force-reinstall --no-deps opencv-python-headless')
    assert 'libGL.so.1' in message and 'apt-get install -y libgl1' in message


def test_a_gpu_is_hidden_from_the_demo_where_mmcv_has_cpu_ops_only(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('PYTHONPATH', '/elsewhere')
    make_ready(tools)
    tools.project_env.BUILT_FOR.write_text('2.12.1 cpu\n')
    variables = tools.project_env.run_variables()
    assert variables['CUDA_VISIBLE_DEVICES'] == '' and 'PYTHONPATH' not in variables
    tools.project_env.BUILT_FOR.write_text('2.12.1 cuda\n')
    assert 'CUDA_VISIBLE_DEVICES' not in tools.project_env.run_variables()


def test_a_wheel_with_cpu_ops_is_replaced_where_the_gpu_can_be_used(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = iter(['ops: cpu', 'ops: cuda'])
    runner = mmcv_runner(tools, ('is_available', 0, 'cuda: 13.0'), ('nvcc', 0, 'release 13.0'))
    answer = runner.run
    runner.real.run = lambda command, env=None: (
        (0, next(loads)) if 'get_compiling' in ' '.join(command) else answer(command, env))
    monkeypatch.setattr(tools.stack, 'nvcc', lambda: '/cuda/bin/nvcc')
    assert tools.steps.install_mmcv(runner.real) == 'compiled, cuda ops'
    variables = variables_of_build(runner)
    assert variables['FORCE_CUDA'] == '1' and 'CUDA_VISIBLE_DEVICES' not in variables


def test_a_gpu_without_its_nvcc_is_mentioned(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(tools.stack, 'nvcc', lambda: None)
    runner = mmcv_runner(tools, ('is_available', 0, 'cuda: 13.0'))
    assert tools.steps.install_mmcv(runner.real) == 'from a wheel, cpu ops'
    assert 'no nvcc of CUDA 13' in capsys.readouterr().out
