"""The tool that runs backbones side by side."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xvit_mm.engine.config import ConfigError

TOOL = Path(__file__).parents[1] / 'tools' / 'benchmark.py'
SMALL = 'xvit_mm.XFormer:out_indices=(0,)'


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('benchmark', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, 'argv', ['benchmark', *arguments, '--sizes', '32', '--rounds', '1',
                                      '--threads', '1', '--device', 'cpu'])
    tool.main()


def test_every_variant_of_every_model_is_measured(tool, monkeypatch, capsys):
    run(tool, monkeypatch, SMALL, 'mmpretrain.MobileViT:arch=xx_small',
        '--variants', 'eager', 'math', 'folded')
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[4:]]
    assert [row[1] for row in rows] == ['eager', 'math', 'folded'] * 2
    times, memory = ([float(row[i]) for row in rows] for i in (2, 5))
    assert min(times) > 0 and min(memory) > 0
    assert float(rows[0][4]) == 1


def test_training_steps_are_measured(tool, monkeypatch, capsys):
    run(tool, monkeypatch, SMALL, '--train', '--batch', '2', '--clock', 'processor')
    assert 'training step, processor clock' in capsys.readouterr().out


def test_variants_that_differ_are_refused(tool, monkeypatch):
    monkeypatch.setattr(tool, 'fuse_conv_bn', lambda model: torch.nn.Sequential(model, Doubled()))
    with pytest.raises(ConfigError, match='folded deviates by .* from .* eager'):
        run(tool, monkeypatch, SMALL, '--variants', 'eager', 'folded')


class Doubled(torch.nn.Module):

    def forward(self, maps):
        return [2 * x for x in maps]


@pytest.mark.parametrize('model, message', [
    ('xvit_mm.NoSuchModel', 'NoSuchModel'),
    ('xvit_mm.XFormer:arch=m', "no arch 'm'"),
    ('xvit_mm.XFormer:arch', "'arch' is not KEY=VALUE"),
    ('xvit_mm.XFormer:arch=(', r"'arch=\(' is not KEY=VALUE"),
])
def test_models_that_cannot_be_are_named(tool, monkeypatch, model, message):
    with pytest.raises(ConfigError, match=message):
        run(tool, monkeypatch, model)


def test_peak_memory_counts_what_is_alive_at_the_same_time(tool):
    def two_of_three():
        y = torch.zeros(10**6) + 1
        y = y + 1
        return y + 1
    two_of_three()
    assert 8e6 <= tool.peak_memory(two_of_three, torch.zeros(1)) < 9e6


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='of the allocator of Linux')
def test_keeping_allocator_does_not_fault_large_tensors_in_again():
    code = ('import resource, sys, torch\n'
            'from xvit_mm.engine.allocator import keep_freed_memory\n'
            'if sys.argv[1] == "keeping": assert keep_freed_memory()\n'
            'torch.set_num_threads(1)\n'
            'use = lambda: torch.ones(25 * 10**6).sum()\n'
            'use(), use()\n'
            'before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
            'for _ in range(3): use()\n'
            'print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)')
    faults = {allocator: int(subprocess.run([sys.executable, '-c', code, allocator],
                                            capture_output=True, text=True, check=True).stdout)
              for allocator in ('keeping', 'system')}
    assert faults['keeping'] < 0.1 * faults['system']
