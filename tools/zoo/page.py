"""The page of the model zoo, in Markdown."""
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .entries import COLLECTIONS, Entry
from .results import METRICS, Published

PAGE = Path('docs', 'model_zoo.md')

# Task, data sets and title of each section. What is small enough to be measured on a CPU is last.
_SECTIONS = (
    ('Object Detection', ('COCO',), 'COCO, boxes'),
    ('Instance Segmentation', ('COCO',), 'COCO, boxes and masks'),
    ('Semantic Segmentation', ('ADE20K',), 'ADE20K'),
    ('Semantic Segmentation', ('Cityscapes',), 'Cityscapes'),
    ('Semantic Segmentation', ('COCO-stuff', 'LIP'), 'COCO-stuff and LIP'),
    ('Image Classification', ('ImageNet-1k',), 'ImageNet-1K'),
    ('Image Classification', ('CIFAR-10',), 'CIFAR-10'),
    ('Object Detection', ('BCCD', 'Generated shapes'), 'Small sets, boxes'),
    ('Semantic Segmentation', ('CamVid',), 'Small sets, segmentation'),
)

_INTRODUCTION = '''\
# Model zoo

Made by `python tools/make_zoo.py` from the configs and from `configs/results.yml`, the only place
where results are recorded; do not edit.

{count} configs. All of them are built, trained for one iteration, validated and, where they have
test-time augmentation, tested with it on generated data of their data set's layout
(`tests/test_zoo.py`). Results are in percent. **Paper**: published by the authors of the model,
not measured here. **Measured**: with this code, with the command below the table.

A tool finds every config by its bare name. `configs/` holds the published settings, `configs/small/`
experiments on small data sets, `configs/vt_paper/` the settings of a single paper, and
`configs/renamed/` an alias, with a warning, for each name that has changed.

Parameters and MACs (multiply-adds; papers call them FLOPs) are of the whole model for one image of
the given height and width, counted by `xvit_mm.utils.complexity`: convolutions, linear layers and all
products of matrices, those of attention included; norms, activations and resizing are not.
Two-stage detectors are counted with 1000 proposals, and masks for 100 of them. `python tools/get_flops.py
CONFIG --shape HEIGHT WIDTH` counts any model by part.

## With mim
```
mim search xvit_mm --model crossformer --condition 'paper_box_ap>47'
mim train  xvit_mm retinanet_crossformer_s_coco.py --data-root data/coco
mim test   xvit_mm retinanet_crossformer_s_coco.py --checkpoint CHECKPOINT --data-root data/coco
```
Search for published results as `paper_...` and for measured ones without the prefix; `long_name` is
the name as OpenMMLab spells it. OpenMMLab's mim (`openmim` 0.3.9) does all three with the installed package.
It needs `pkg_resources`, which setuptools 82 removed, and its dependencies pin setuptools 60.2.
OneDL's (`onedl-mim` 0.5.1) does all three with a checkout that is installed by `pip install -e .`
and has no `build/` folder; with an installed wheel it takes `xvit_mm-*.dist-info` for the package
and finds nothing. `mim download` fetches the weights whose address is direct, those of CrossViT.

## Weights
The files that the authors of CrossFormer and CrossViT released have names, listed in the column **weights**.
```
python tools/train.py retinanet_crossformer_s_coco --pretrained official   # its backbone's weights
python tools/test.py  retinanet_crossformer_s_coco official                # the authors' detector
```
`official` stands for the file that belongs to the config, `official://crossformer_s` for any file:
on the command line, in `load_from`, in `init_cfg` and wherever mmengine loads a checkpoint.
[Checkpoints](checkpoints.md#weights-by-name) says where the files come from and where they are kept.

## Where the papers' costs differ
Beyond the rounding of what is printed, parameters agree within 0.5 % and MACs within 3 %
(`tests/test_model_zoo.py`), except:

- **CrossFormer in detectors and segmentors**: parameters agree, MACs are 3 to 16 % below the
  paper's. The authors' counter takes every map as their code pads it, to whole groups and
  intervals; here nothing is padded. Their 1x detectors cost 9.9 G more than their 3x detectors of
  the same model (paper: 301.0 and 291.1 G), which is what groups of 14 x 14 tokens and intervals of
  16 and 8 cost in the first two stages, instead of 7 x 7 and of 8 and 4; all released configs, and
  those here, have the latter, except `fpn_crossformer_l_ade20k`. About 15 G for S and 31 G for B remain
  unexplained. Cascade Mask R-CNN differs by as much as Mask R-CNN 3x with the same backbone, 20 G. CrossFormer's classifiers need no padding and agree; those of CrossFormer++ are
  padded in their first two stages.
- **CrossFormer++-S**: the paper's RetinaNet row repeats the cost of CrossFormer-S, and its
  classifier's 4.9 G are 4.43 G when the authors' code is counted.
- **Semantic FPN and UPerNet on ADE20K**: the authors count 1024 x 1024 pixels, the table has
  512 x 512.
- **CrossViT**: MACs are up to 7 % below the paper's. The keys and values of the fusion are never
  computed here; with them the MACs agree. For tiny and small the paper prints 6.9 and 26.7 M; the
  released code has 7.01 and 26.86 M, as here.
- **ResNet with FPN or VT-FPN**: the paper's ResNet, Detectron2's, has its strides in 1 x 1
  convolutions. Here they are in the 3 x 3 convolutions, for torchvision's weights. With
  `style='caffe'` the MACs agree.
- **VT-ResNet-50**: the paper's size is that of a configuration that it does not describe.
'''


def page(entries: Sequence[Entry]) -> str:
    """Return the page: introduction, then a table for each task and data set."""
    sections = []
    for task, datasets, title in _SECTIONS:
        chosen = [entry for entry in entries
                  if entry.method.task == task and entry.dataset.name in datasets]
        if chosen:
            sections.append(_section(title, sorted(chosen, key=_order)))
    return '\n'.join([_INTRODUCTION.format(count=len(entries)), *sections])


def _order(entry: Entry) -> tuple:
    return (entry.method.name, COLLECTIONS.index(entry.collection), entry.cost.parameters,
            entry.name)


def _section(title: str, entries: Sequence[Entry]) -> str:
    metrics = [name for name in METRICS if any(name in _figures(entry) for entry in entries)]
    names = ' / '.join(metrics)
    columns = ['config', 'model', 'size', 'parameters (M)', 'MACs (G)']
    if any(entry.results.published for entry in entries):
        columns += [f'{names} (paper)', 'cost (paper)']
    if any(entry.weights for entry in entries):
        columns += ['weights']
    if any(entry.results.measured for entry in entries):
        columns += [f'{names} (measured)']
    lines = [f'## {title}', _row(columns), '|---' * len(columns) + '|']
    lines += [_row(_cells(entry, columns, metrics)) for entry in entries]
    lines += _notes(entries) + _measurements(entries)
    return '\n'.join(lines) + '\n'


def _figures(entry: Entry) -> set[str]:
    published = entry.results.published
    kinds = [published.metrics] if published else []
    return {name for kind in kinds + [run.metrics for run in entry.results.measured]
            for name in kind}


def _cells(entry: Entry, columns: Sequence[str], metrics: Sequence[str]) -> list[str]:
    height, width = entry.size
    cells = [
        f'`{entry.name}`', entry.model, f'{height} x {width}',
        f'{entry.cost.parameters / 1e6:.2f}', _billions(entry.cost.macs)]
    if 'cost (paper)' in columns:
        published = entry.results.published
        cells += [_metrics(published.metrics if published else {}, metrics), _costs(published)]
    if 'weights' in columns:
        cells.append(f'`{entry.weights}`' if entry.weights else '')
    if columns[-1].endswith('(measured)'):
        runs = [_metrics(run.metrics, metrics) for run in entry.results.measured]
        cells.append(', '.join(runs))
    return cells


def _billions(macs: int) -> str:
    return f'{macs / 1e9:.2f}' if macs < 10e9 else f'{macs / 1e9:.1f}'


def _metrics(given: dict[str, float], metrics: Sequence[str]) -> str:
    figures = [str(given.get(name, '')) for name in metrics]
    return ' / '.join(figures).rstrip(' /')


def _costs(published: Published | None) -> str:
    if not published:
        return ''
    given = {'M': published.parameters, 'G': published.macs}
    costs = ', '.join(f'{number} {unit}' for unit, number in given.items() if number is not None)
    return f'{costs} at {published.at}' if published.at else costs


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Return the sources of a table's published figures and notes on comparing them."""
    papers = {entry.results.published.paper: None for entry in entries if entry.results.published}
    links = ', '.join(f'[{paper.title}]({paper.url})' for paper in papers)
    lines = ['', f'Source (paper): {links}.'] if links else []
    notes: dict[str, list[str]] = {}
    for entry in entries:
        if entry.results.published and entry.results.published.note:
            notes.setdefault(entry.results.published.note, []).append(f'`{entry.name}`')
    return lines + _bullets(f'{", ".join(names)}: {note}' for note, names in notes.items())


def _measurements(entries: Sequence[Entry]) -> list[str]:
    lines = []
    for entry in entries:
        for run in entry.results.measured:
            figures = ', '.join(f'{value} {name}' for name, value in run.metrics.items())
            parts = [f'`{entry.name}`: {figures} (measured)', run.setting, f'`{run.command}`']
            if run.log:
                parts.append(f'[log]({Path(os.path.relpath(run.log, PAGE.parent)).as_posix()})')
            lines.append('; '.join(part for part in parts if part))
    return _bullets(lines)


def _bullets(lines: Iterable[str]) -> list[str]:
    bullets = [f'- {line}' for line in lines]
    return ['', *bullets] if bullets else []


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
