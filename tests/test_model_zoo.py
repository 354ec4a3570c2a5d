"""The model zoo: its page and metafiles are up to date, and its figures are those of the papers."""
import copy
import importlib.util
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config

from xvit_mm.apis import build_model
from xvit_mm.apis.command_line import run_tool
from xvit_mm.checkpoints.catalogue import find_released, official_classifier
from xvit_mm.utils.complexity import Cost, count_macs, measure_cost
from zoo import (RESULTS, Entry, measure, read_costs, read_entries, render,
                                write_zoo, writing)
from zoo.cost import TwoStages, meta_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def entries() -> list[Entry]:
    return read_entries(ROOT, read_costs(ROOT))


@pytest.fixture(scope='module')
def by_name(entries: list[Entry]) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries}


# The files agree with the configs.


def test_page_and_metafiles_are_those_of_the_configs_and_results(entries: list[Entry]) -> None:
    unmeasured = [entry.name for entry in entries if entry.cost is None]
    assert not unmeasured, 'new configs: run python tools/make_zoo.py --keep-costs'
    files = render(entries)
    stale = [str(path) for path, text in files.items() if (ROOT / path).read_text() != text]
    assert not stale, 'run python tools/make_zoo.py --keep-costs'
    shipped = {path.relative_to(ROOT) for path in (ROOT / 'configs' / 'metafiles').iterdir()}
    assert shipped <= files.keys()


@pytest.mark.training
def test_parameters_of_every_config_are_those_of_its_metafile(entries: list[Entry]) -> None:
    found = {entry.name: sum(p.numel() for p in meta_model(entry.cfg).parameters())
             for entry in entries}
    stale = [entry.name for entry in entries if entry.cost.parameters != found[entry.name]]
    assert not stale, 'run python tools/make_zoo.py'


def test_headers_of_configs_state_the_published_results(entries: list[Entry]) -> None:
    """Each figure with a metric in the header is in the results, and vice versa."""
    metric = r'(\d+\.\d+)(?: with)? (top-1|box AP|mask AP|mIoU|--tta)'
    for entry in entries:
        lines = Path(entry.cfg.filename).read_text().splitlines()
        header = ' '.join(line.lstrip('# ') for line in lines if line.startswith('#'))
        stated = {name.replace('--tta', 'mIoU with --tta'): float(value)
                  for value, name in re.findall(metric, header)}
        published = entry.results.published
        assert stated == (published.metrics if published else {}), entry.name
        assert bool(published) == ('paper' in header.lower()), entry.name


def test_commands_in_headers_of_configs_run(entries: list[Entry]) -> None:
    """The config exists, and so does what it starts from: a released file, or a config's run."""
    for entry in entries:
        lines = Path(entry.cfg.filename).read_text().splitlines()
        header = ' '.join(line.lstrip('# ') for line in lines if line.startswith('#'))
        commands = re.findall(r'tools/train\.py (\S+)', header)
        assert commands and commands[-1] == str(entry.path), entry.name
        assert all((ROOT / path).is_file() for path in commands), entry.name
        for start in re.findall(r'--pretrained (\w[^\s`]*)', header):
            if start == 'official':
                start = official_classifier(entry.cfg.model.backbone)
            scheme, _, name = start.partition('://')
            if scheme == 'official':
                assert find_released(name).backbone in entry.cfg.model.backbone.type
            elif scheme == 'torchvision':
                backbone = entry.cfg.model.backbone
                arch = backbone.get('arch', f'r{backbone.get("depth")}')
                assert name == arch.replace('r', 'resnet'), entry.name
            else:
                folder, run, file = start.split('/')
                assert folder == 'work_dirs' and f'configs/{run}.py' in commands, entry.name
                cfg = Config.fromfile(ROOT / 'configs' / f'{run}.py')
                assert file == f'epoch_{cfg.train_cfg.max_epochs}.pth', entry.name


def test_measured_results_are_in_their_logs(entries: list[Entry]) -> None:
    keys = {'box AP': ('coco/bbox_mAP', 100), 'mIoU': ('mIoU', 1), 'top-1': ('accuracy/top1', 1)}
    for entry in entries:
        for run in entry.results.measured:
            assert run.command and run.log, entry.name
            records = [json.loads(line) for line in (ROOT / run.log).read_text().splitlines()]
            for name, value in run.metrics.items():
                key, factor = keys[name]
                logged = [record[key] * factor for record in records if key in record]
                assert value == pytest.approx(logged[-1], abs=0.006), entry.name


def test_names_are_unique_and_such_that_mim_finds_them(entries: list[Entry]) -> None:
    for names in ([entry.name for entry in entries], [entry.long_name for entry in entries]):
        assert max(Counter(names).values()) == 1
        # mim writes what it looks for in small letters.
        assert all(name == name.lower() and ' ' not in name for name in names)
    found = {entry.name: entry.long_name for entry in entries}
    assert found['retinanet_crossformer_s_coco'] == 'retinanet_crossformer-s_fpn_8xb2-1x_coco'
    assert found['crossvit_s_imagenet'] == 'crossvit-small_32xb128-300e_in1k-240x240'
    assert found['yolov3_xformer_coco'] == 'yolov3_xformer_8xb24-300e_coco-320x320'
    assert found['fpn_crossformer_pp_s_ade20k'] == 'fpn_crossformer-pp-s_4xb4-80k_ade20k-512x512'


def test_the_index_can_be_read_and_its_configs_exist(entries: list[Entry]) -> None:
    modelindex = pytest.importorskip('modelindex.load_model_index')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert {model.name for model in index.models} == {entry.name for entry in entries}
    for model in index.models:
        assert (ROOT / model.config).is_file()
        assert model.in_collection in {collection.name for collection in index.collections}


# Parameters (M) and MACs (G) as published: the paper's, or for classifiers whose code is released
# what that code has. None: not published. They hold within 0.5 % and 3 %, beyond rounding.

MEASURED_ANEW = 5e9  # MACs; of larger models the figure of the metafile is taken
PUBLISHED = {
    'crossformer_t_imagenet': ('27.776794', '2.86'),
    'crossformer_s_imagenet': ('30.657394', '4.91'),
    'crossformer_b_imagenet': ('51.971554', '9.16'),
    'crossformer_l_imagenet': ('91.971184', '16.11'),
    'crossformer_pp_s_imagenet': ('23.325340', '4.43'),
    'crossformer_pp_b_imagenet': ('51.994594', '9.59'),
    'crossformer_pp_l_imagenet': ('92.001904', '16.72'),
    'crossformer_pp_h_imagenet': ('95.962944', '22.00'),
    'crossvit_t_imagenet': ('7.014800', '1.57'),
    'crossvit_s_imagenet': ('26.856272', '5.63'),
    'crossvit_b_imagenet': ('105.025232', '21.2'),
    'crossvit_9_imagenet': ('8.553296', '1.85'),
    'crossvit_15_imagenet': ('27.528464', '5.81'),
    'crossvit_18_imagenet': ('43.271408', '9.05'),
    'crossvit_9_dagger_imagenet': ('8.776592', '2.0'),
    'crossvit_15_dagger_imagenet': ('28.209008', '6.1'),
    'crossvit_18_dagger_imagenet': ('44.266976', '9.5'),
    'crossvit_15_dagger_384_imagenet': ('28.500080', '21.4'),
    'crossvit_18_dagger_384_imagenet': ('44.606560', '32.4'),
    'xformer_imagenet': ('5.5', None),
    'yolov3_xformer_coco': ('6.3', '3.8'),
    'vt_r18_imagenet': ('11.6', '1.579'),
    'vt_r34_imagenet': ('21.8', '3.299'),
    'vt_r18_advanced_imagenet': ('11.7', '1.569'),
    'fpn_r50_cocostuff': (None, '159'),
    'vtfpn_r50_cocostuff': (None, '113'),
    'fpn_r101_cocostuff': (None, '231'),
    'vtfpn_r101_cocostuff': (None, '185'),
    'fpn_r50_lip': (None, '37.1'),
    'vtfpn_r50_lip': (None, '26.4'),
    'fpn_r101_lip': (None, '54.4'),
    'vtfpn_r101_lip': (None, '43.6'),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str, by_name: dict[str, Entry]) -> None:
    entry, (parameters, macs) = by_name[name], PUBLISHED[name]
    cost = entry.cost
    if name.endswith(('cocostuff', 'lip')):
        # The paper's ResNets are Detectron2's, with strides in the 1 x 1 convolutions.
        cfg = copy.deepcopy(entry.cfg)
        cfg.model.backbone.style = 'caffe'
        cost = measure(cfg, entry.size)
    elif cost.macs < MEASURED_ANEW:
        assert measure(entry.cfg, entry.size) == cost, 'run python tools/make_zoo.py'
    # The keys and values that the fusion of CrossViT saves, as exact algebra.
    saved = keys_and_values(entry) if entry.collection == 'CrossViT' else 0
    assert relative_error(cost.parameters / 1e6, parameters) <= 0.005
    assert relative_error((cost.macs + saved) / 1e9, macs) <= 0.03


def relative_error(value: float, printed: str | None) -> float:
    """Distance from the numbers that are printed so, relative."""
    if printed is None:
        return 0.
    digits = len(printed.partition('.')[2])
    return max(abs(value - float(printed)) - 0.5 * 10**-digits, 0) / float(printed)


def keys_and_values(entry: Entry) -> int:
    """MACs of two projections of all tokens in the fusions of CrossViT, in 3 encoders."""
    small, large = entry.cfg.model.head.in_channels
    grid = {240: (20, 14), 408: (34, 24)}[entry.size[0]]
    # The class token of one branch, projected to the other's width, looks at the other's tokens.
    return 3 * sum(2 * (side**2 + 1) * width**2 for side, width in zip(grid, (small, large)))


DENSE = [(f'retinanet_crossformer_{arch}_coco', (800, 1280)) for arch in ('s', 'b', 'pp_b')]
DENSE += [(f'mask_rcnn_crossformer_{arch}_coco', (800, 1280))
          for arch in ('s', 'b', 'pp_s', 'pp_b', 's_3x', 'b_3x')]
DENSE += [('cascade_mask_rcnn_crossformer_s_3x_coco', (800, 1280))]
DENSE += [(f'{method}_crossformer_{arch}_ade20k', (1024, 1024))
          for method in ('fpn', 'upernet') for arch in ('s', 'b', 'l', 'pp_s', 'pp_b')]


@pytest.mark.parametrize('name, size', DENSE)
def test_dense_crossformers_have_the_published_parameters_and_no_padding(
    name: str, size: tuple[int, int], by_name: dict[str, Entry],
) -> None:
    """The paper's MACs are those of padded maps; what is measured here must be a little less."""
    entry = by_name[name]
    published = entry.results.published
    assert relative_error(entry.cost.parameters / 1e6, str(published.parameters)) <= 0.005
    pixels = size[0] * size[1] / (entry.size[0] * entry.size[1])
    assert 0.83 <= entry.cost.macs * pixels / 1e9 / published.macs < 1


def test_what_the_page_says_of_the_papers_figures_holds(by_name: dict[str, Entry]) -> None:
    published = {name: entry.results.published for name, entry in by_name.items()}
    for size in 's', 'b':
        once, thrice = (published[f'mask_rcnn_crossformer_{size}{length}_coco'].macs
                        for length in ('', '_3x'))
        more = [padded_attention(size, group_sizes, intervals) for group_sizes, intervals in (
            ((14, 14, 7, 7), (16, 8, 2, 1)), ((7, 7, 7, 7), (8, 4, 2, 1)))]
        assert once - thrice == pytest.approx((more[0] - more[1]) / 1e9, abs=0.15)


def test_cascade_differs_from_the_paper_by_as_much_as_mask_rcnn(by_name: dict[str, Entry]) -> None:
    """In the backbone, that is; the parameters of its heads round to the published ones."""
    missing = []
    for method in ('mask_rcnn', 'cascade_mask_rcnn'):
        entry = by_name[f'{method}_crossformer_s_3x_coco']
        missing.append(entry.results.published.macs - entry.cost.macs / 1e9)
    assert round(entry.cost.parameters / 1e6, 1) == entry.results.published.parameters == 88.0
    assert missing[0] == pytest.approx(missing[1], abs=0.5)


def padded_attention(
    size: str, group_sizes: tuple[int, ...], intervals: tuple[int, ...]
) -> int:
    """MACs of CrossFormer's attention at 800 x 1280 on maps padded to groups and intervals."""
    macs = 0
    for stage, depth in enumerate((2, 2, 6 if size == 's' else 18, 2)):
        channels, group = 96 * 2**stage, group_sizes[stage]
        for block in range(depth):
            unit = group * (intervals[stage] if block % 2 else 1)
            sides = (math.ceil(side / 2**(stage + 2)) for side in (800, 1280))
            tokens = math.prod(math.ceil(side / unit) * unit for side in sides)
            macs += tokens * (4 * channels**2 + 2 * group**2 * channels)
    return macs


def test_two_stages_count_as_when_they_run(by_name: dict[str, Entry]) -> None:
    cfg = copy.deepcopy(by_name['mask_rcnn_xformer_coco'].cfg)
    # All regions are kept, so that their number is known.
    cfg.model.test_cfg.rpn.update(nms_pre=10, max_per_img=30, min_bbox_size=-1)
    cfg.model.test_cfg.rpn.nms.iou_threshold = 1.
    whole = measure_cost(build_model(copy.deepcopy(cfg)), (64, 96))
    assert whole.parts['roi_head'].macs > 0
    assert count_macs(TwoStages(meta_model(cfg), num_proposals=30), (64, 96)) == whole.macs


# Making the files.

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', backbone=dict(type='xvit_mm.XFormer'),
    head=dict(type='xvit_mm.XFormerClsHead', num_classes=10, in_channels=160))
pipeline = [dict(type='Resize', scale=64)]
train_dataloader = dict(batch_size=4, dataset=dict(type='CIFAR10', pipeline=pipeline))
test_dataloader = dict(batch_size=4, dataset=dict(type='CIFAR10', pipeline=pipeline))
train_cfg = dict(max_epochs=3)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""
PAPERS = "papers:\n  one: {title: One, url: 'https://one'}\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small one, and models that cost as much as their names have letters."""
    (tmp_path / 'configs').mkdir()
    for name in 'a_cifar10', 'bb_cifar10':
        (tmp_path / 'configs' / f'{name}.py').write_text(CONFIG)
    (tmp_path / RESULTS).write_text(PAPERS + """
configs:
  a_cifar10:
    paper: {source: one, top-1: 91.5, parameters (M): 5.5, at: 1 x 1, note: not comparable}
    measured:
    - {top-1: 90.25, command: python it.py, setting: one run, log: docs/logs/a.json}
""")
    monkeypatch.setattr(
        writing, 'measure', lambda cfg, size: Cost(10**6 * len(cfg.filename), 10**9 * size[0]))
    return tmp_path


def test_the_page_tells_published_from_measured(repository: Path) -> None:
    files = write_zoo(repository)
    text = (repository / 'docs' / 'model_zoo.md').read_text()
    millions = len(str(repository / 'configs' / 'a_cifar10.py'))
    assert (f'| `a_cifar10` | XFormer | 64 x 64 | {millions}.00 | 64.0 | 91.5 | 5.5 M at 1 x 1 '
            '| 90.25 |' in text)
    assert '| top-1 (paper) | cost (paper) | top-1 (measured) |' in text
    assert 'Source (paper): [One](https://one).' in text and '- `a_cifar10`: not comparable' in text
    assert ('- `a_cifar10`: 90.25 top-1 (measured); one run; `python it.py`; [log](logs/a.json)'
            in text)
    metafile = (repository / 'configs' / 'metafiles' / 'xformer.yml').read_text()
    assert 'paper top-1: 91.5' in metafile and ' top-1: 90.25' in metafile
    assert all((repository / path).is_file() for path in files)


def test_costs_are_measured_anew_or_kept(repository: Path) -> None:
    measured: list[str] = []
    write_zoo(repository, report=lambda name, cost: measured.append(name))
    assert measured == ['a_cifar10', 'bb_cifar10']
    first = {path: path.read_text() for path in repository.rglob('*.yml')}
    (repository / 'configs' / 'c_cifar10.py').write_text(CONFIG)
    write_zoo(repository, keep_costs=True, report=lambda name, cost: measured.append(name))
    assert measured[2:] == ['c_cifar10']
    (repository / 'configs' / 'c_cifar10.py').unlink()
    write_zoo(repository, keep_costs=True, report=lambda name, cost: measured.append(name))
    assert len(measured) == 3 and first == {path: path.read_text() for path in first}
    write_zoo(repository, report=lambda name, cost: measured.append(name))
    assert measured[3:] == ['a_cifar10', 'bb_cifar10']


@pytest.mark.parametrize('entry, message', [
    ('no_such: {paper: {source: one}}', "there is no config 'no_such'"),
    ('a_cifar10: {paper: {source: two}}', "source 'two' is not one of the papers one"),
    ('a_cifar10: {paper: {source: one, top1: 3}}', "no entry 'top1'; there are: MACs (G), at"),
    ('a_cifar10: {published: {}}', "no entry 'published'; there are: measured, paper"),
    ('a_cifar10: {measured: [{top-1: 3}]}', 'a measured result needs a command'),
    ('a_cifar10: {measured: [{command: it}]}', 'needs a command and one of box AP, mask AP, mIoU'),
])
def test_a_wrong_result_is_refused_in_one_line_and_nothing_is_written(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    entry: str, message: str,
) -> None:
    (repository / RESULTS).write_text(f'{PAPERS}configs:\n  {entry}\n')
    spec = importlib.util.spec_from_file_location('make_zoo', ROOT / 'tools' / 'make_zoo.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, 'ROOT', repository)
    monkeypatch.setattr(sys, 'argv', ['make_zoo.py'])
    with pytest.raises(SystemExit) as exit_code:
        run_tool(tool.main)
    error = capsys.readouterr().err
    assert exit_code.value.code == 1 and message in error and len(error.splitlines()) == 1
    assert not (repository / 'docs').exists() and not (repository / 'model-index.yml').exists()
