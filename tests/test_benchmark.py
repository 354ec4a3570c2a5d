"""The tool that runs backbones side by side."""
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS

from xvit_mm.models.backbones import CrossFormer
from xvit_mm.models.necks import VTFPN
from xvit_mm.utils.config import ConfigError

TOOL = Path(__file__).parents[1] / 'tools' / 'benchmark.py'
RECORDED = TOOL.parent / 'benchmarks' / 'recorded.json'
SMALL = 'xvit_mm.XFormer:out_indices=(0,)'


sys.path.insert(0, str(TOOL.parent))
from benchmarks import measuring, peers, profiling, records  # noqa: E402


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('benchmark', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, monkeypatch, *arguments: str) -> None:
    sizes = [] if '--sizes' in arguments else ['--sizes', '32']
    monkeypatch.setattr(sys, 'argv', ['benchmark', *arguments, *sizes, '--rounds', '1', '--threads',
                                      '1', '--device', 'cpu'])
    tool.main()


def test_every_variant_of_every_model_is_measured(tool, monkeypatch, capsys):
    run(tool, monkeypatch, SMALL, 'mmpretrain.MobileViT:arch=xx_small',
        '--variants', 'eager', 'math', 'folded')
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[5:]]
    assert [row[1] for row in rows] == ['eager', 'math', 'folded'] * 2
    times, memory = ([float(row[i]) for row in rows] for i in (2, 5))
    assert min(times) > 0 and min(memory) > 0
    assert float(rows[0][4]) == 1
    # From the stem to stage 2: 178,880 parameters and, at 32 x 32, 8.2 million products.
    assert [row[7:9] for row in rows[:2]] == 2 * [['0.18', '0.01']]


@pytest.mark.skipif(not hasattr(torch.compiler, 'is_exporting'), reason='torch 2.7 or newer')
def test_compiled_models_are_measured_beside_others(tool, monkeypatch, capsys):
    run(tool, monkeypatch, SMALL, '--compile', '--backend', 'eager')
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[5:]]
    assert [row[1] for row in rows] == ['eager', 'compiled']
    with pytest.raises(Exception, match='no_such_backend'):
        run(tool, monkeypatch, SMALL, '--compile', '--backend', 'no_such_backend')


def test_training_steps_are_measured(tool, monkeypatch, capsys):
    run(tool, monkeypatch, SMALL, '--train', '--batch', '2', '--clock', 'processor')
    lines = capsys.readouterr().out.splitlines()
    assert 'processor clock' in lines[0] and lines[2] == 'training step, batch 2'
    header, row = lines[-2].split(), lines[-1].split()
    assert header[-1] == 'images/s'
    # Both are rounded, the time to 0.1 ms.
    assert float(row[-1]) == pytest.approx(2000 / float(row[2]), rel=0.02)


NECKS = [f'{kind}:in_channels=[8,16],out_channels=8,num_outs=2{more}'
         for kind, more in (('mmdet.FPN', ''), ('xvit_mm.VTFPN', ',token_channels=16'))]


@pytest.mark.parametrize('mode', [[], ['--train']])
def test_necks_are_compared_on_maps_of_sizes_that_need_not_be_square(
        tool, monkeypatch, capsys, mode):
    shapes = []
    forward = VTFPN.forward
    monkeypatch.setattr(VTFPN, 'forward', lambda self, maps: (
        shapes.append([x.shape for x in maps]) or forward(self, maps)))
    run(tool, monkeypatch, *NECKS, *mode, '--maps', '8/4', '16/8', '--sizes', '40x60', '32',
        '--variants', 'eager', 'channels_last')
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if re.fullmatch(r'\d+ x \d+', line)] == ['40 x 60', '32 x 32']
    assert [line.split()[:2] for line in lines if line.startswith(('mmdet', 'xvit_mm'))] == 2 * [
        [kind, variant] for kind in ('mmdet.FPN', 'xvit_mm.VTFPN')
        for variant in ('eager', 'channels_last')]
    assert shapes[0] == [(1, 8, 10, 15), (1, 16, 5, 8)]


def test_training_steps_of_necks_include_the_gradient_of_their_maps(tool):
    maps = tool.noise((32, 32), [(8, 4), (16, 8)], 1, torch.device('cpu'))
    contender = tool.Contender('neck', tool.build(NECKS[1]), 'eager', maps, is_neck=True)
    for x in contender.inputs:
        x.requires_grad_()
    seen = []
    contender.inputs[0].register_hook(lambda grad: seen.append(grad))
    contender.step(train=True)
    assert seen[0].any() and contender.inputs[0].grad is None


@pytest.mark.parametrize('wrong', [
    ['--sizes', '0'], ['--sizes', '8x8x8'], ['--sizes', 'large'], ['--maps', '256'],
    ['--maps', '256/0'],
])
def test_sizes_and_maps_that_cannot_be_are_refused(tool, monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, SMALL, *wrong)
    assert f"argument {wrong[0]}: invalid" in capsys.readouterr().err


def test_models_of_one_type_are_told_apart_by_their_settings(tool):
    assert tool.names_of(['a.B:c=1', 'a.D:c=1']) == ['a.B', 'a.D']
    assert tool.names_of(['a.B:c=1', 'a.B:c=2']) == ['a.B:c=1', 'a.B:c=2']


def test_variants_that_differ_are_refused(tool, monkeypatch):
    monkeypatch.setattr('benchmarks.contenders.fuse_conv_bn',
                        lambda model: torch.nn.Sequential(model, Doubled()))
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
    assert 8e6 <= measuring.peak_memory(two_of_three, on_gpu=False) < 9e6


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='of the allocator of Linux')
def test_keeping_allocator_does_not_fault_large_tensors_in_again():
    code = ('import resource, sys, torch\n'
            'from xvit_mm.engine.allocator import keep_freed_memory\n'
            'if sys.argv[1] == "keeping": assert keep_freed_memory()\n'
            'torch.set_num_threads(1)\n'
            'use = lambda: torch.ones(25 * 10**6).sum()\n'
            'for _ in range(5): use()\n'
            'before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
            'for _ in range(6): use()\n'
            'print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)')
    faults = {allocator: int(subprocess.run([sys.executable, '-c', code, allocator],
                                            capture_output=True, text=True, check=True).stdout)
              for allocator in ('keeping', 'system')}
    # Small blocks that land in the freed space can make the heap grow by one more tensor.
    assert faults['keeping'] < 0.5 * faults['system']


@pytest.mark.parametrize('size', [(64, 64), (70, 101), (37, 230)])
def test_the_official_formulation_gives_the_same_maps(tool, size):
    arch = dict(embed_dims=32, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), group_size=(3, 3, 4, 3),
                interval=(4, 2, 2, 1))
    ours = CrossFormer(arch).eval()
    official = MODELS.build(dict(type='OfficialCrossFormer', arch=arch)).eval()
    official.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        for a, b in zip(ours(image), official(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


MODELS_OF_A_RECORD = [SMALL, SMALL.replace('0', '1')]


def test_what_is_recorded_can_be_checked(tool, monkeypatch, tmp_path, capsys):
    path = tmp_path / 'record.json'
    run(tool, monkeypatch, *MODELS_OF_A_RECORD, '--amp', '--record', str(path))
    record = json.loads(path.read_text())
    ours, peer = record['rows']
    assert ours['size'] == [32, 32] and ours['amp'] and not ours['train']
    assert ours['ratio'] == 1
    assert ours['images_per_s'] == pytest.approx(1e3 / ours['ms'], rel=1e-3)
    # The peer cannot be ten times as slow as it was, nor ten times as fast.
    for factor, message in ((10., 'ratios have fallen: .* recorded'), (0.1, None)):
        changed = dict(record, rows=[ours, dict(peer, ratio=factor * peer['ratio'])])
        (tmp_path / 'changed.json').write_text(json.dumps(changed))
        arguments = [*MODELS_OF_A_RECORD, '--amp', '--check', str(tmp_path / 'changed.json')]
        if message:
            with pytest.raises(ConfigError, match=message):
                run(tool, monkeypatch, *arguments)
        else:
            run(tool, monkeypatch, *arguments)
            assert '2 ratios are not below' in capsys.readouterr().out
    with pytest.raises(ConfigError, match='nothing of this run was recorded with these settings'):
        run(tool, monkeypatch, *MODELS_OF_A_RECORD, '--check', str(path))


def test_a_record_grows_and_belongs_to_one_machine(tool, monkeypatch, tmp_path):
    path = tmp_path / 'record.json'
    for mode in ([], ['--train'], []):
        run(tool, monkeypatch, *MODELS_OF_A_RECORD, *mode, '--record', str(path))
    record = json.loads(path.read_text())
    assert [row['train'] for row in record['rows']] == [False, False, True, True]
    path.write_text(json.dumps(dict(record, machine=dict(device='another'))))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match='is of another machine'):
        run(tool, monkeypatch, *MODELS_OF_A_RECORD, '--record', str(path))
    assert path.read_bytes() == before
    path.write_text('[]')
    with pytest.raises(ConfigError, match='is not a file of --record'):
        run(tool, monkeypatch, *MODELS_OF_A_RECORD, '--check', str(path))


def test_every_comparison_with_peers_is_measured_and_recorded(tool, monkeypatch, tmp_path):
    whole_runs = peers.runs_of

    def small_runs(comparison, cases):
        first = next(iter(whole_runs(comparison, cases)))
        # timm's CrossViT has one size.
        yield replace(first, size=(240, 240) if comparison == 'crossvit' else (32, 32))

    monkeypatch.setattr(tool, 'runs_of', small_runs)
    path = tmp_path / 'record.json'
    run(tool, monkeypatch, '--peers', '--record', str(path))
    rows = records.read_record(path)['rows']
    assert len(rows) == 11
    assert {row['first'] for row in rows} == {
        f'xvit_mm.{name} eager' for name in ('CrossFormer', 'CrossViT', 'XFormer', 'VTResNet',
                                             'VTFPN')}
    assert records.table_of(rows).count('\n') == 1 + 6


def test_cases_can_be_chosen():
    runs = list(peers.runs_of('xformer', ['training-800x1344-1', 'inference-224x224-8']))
    assert [(r.train, r.size, r.batch) for r in runs] == [
        (True, (800, 1344), 1), (False, (224, 224), 8)]
    assert not list(peers.runs_of('crossvit', ['inference-512x512-8']))


def test_the_page_shows_the_record():
    page = (TOOL.parents[1] / 'docs' / 'performance.md').read_text()
    assert records.table_of(records.read_record(RECORDED)['rows']) in page


def test_shares_count_what_an_operation_calls(tool, monkeypatch, tmp_path, capsys):
    x, weight = torch.randn(400, 400), torch.randn(400, 400)
    kinds, others = profiling.shares(lambda: (torch.addmm(x[0], x, weight), x.exp()))
    assert sum(kinds.values()) == pytest.approx(1)
    # The copy of the bias is part of the product.
    assert kinds['products'] > 0 and 'copy_' not in others and 'exp' in others
    assert kinds['convolutions'] == kinds['attention'] == 0
    query = torch.randn(1, 2, 50, 8)
    kinds, _ = profiling.shares(lambda: torch.nn.functional.scaled_dot_product_attention(
        query, query, query))
    assert kinds['attention'] > 0.99
    page = tmp_path / 'page.md'
    page.write_text('before\n<!-- profile -->\nold\n<!-- end of profile -->\nafter\n')
    run(tool, monkeypatch, '--profile', SMALL, '--docs', str(page))
    text = page.read_text()
    assert text.startswith('before\n<!-- profile -->\n\n| model |') and text.endswith('after\n')
    assert 'old' not in text and text.count('32 x 32') == 2
    page.write_text('nothing')
    with pytest.raises(ConfigError, match='has no lines'):
        run(tool, monkeypatch, '--profile', SMALL, '--docs', str(page))
