"""The metafiles and the index that `mim` reads."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from xvit_mm.checkpoints import catalogue
from xvit_mm.utils.complexity import Cost

from .entries import COLLECTIONS, Entry

INDEX = Path('model-index.yml')
FOLDER = Path('configs', 'metafiles')
_HEADER = '# Made by tools/make_zoo.py from configs/results.yml and the configs; do not edit.\n'

_ABOUT = {
    'CrossFormer': (['CrossFormer', 'CrossFormer++'], 'https://arxiv.org/abs/2108.00154'),
    'CrossViT': (['CrossViT'], 'https://arxiv.org/abs/2103.14899'),
    'XFormer': (['XFormer'], 'https://arxiv.org/abs/2207.07268'),
    'VT': (['VT-ResNet', 'VT-FPN'], 'https://arxiv.org/abs/2006.03677'),
    'Baselines': (['models of other packages with our recipes'], None),
}


def metafiles(entries: Sequence[Entry]) -> dict[Path, str]:
    """Return the text of the index and of each metafile, by path."""
    files = {_path(collection): _metafile(collection, entries) for collection in COLLECTIONS}
    index = {'Import': [path.as_posix() for path in files]}
    return {INDEX: _dump(index), **files}


def read_costs(root: Path) -> dict[str, Cost]:
    """Return the cost of each config that the metafiles in `root` state."""
    models = []
    for collection in COLLECTIONS:
        path = root / _path(collection)
        if path.is_file():
            models += yaml.safe_load(path.read_text(encoding='utf-8'))['Models']
    return {
        model['Name']: Cost(model['Metadata']['Parameters'], model['Metadata']['FLOPs'])
        for model in models}


def _path(collection: str) -> Path:
    return FOLDER / f'{collection.lower()}.yml'


def _metafile(collection: str, entries: Sequence[Entry]) -> str:
    architecture, paper = _ABOUT[collection]
    about: dict[str, Any] = {'Name': collection, 'Metadata': {'Architecture': architecture}}
    if paper:
        about['Paper'] = paper
    models = [_model(entry) for entry in entries if entry.collection == collection]
    return _dump({'Collections': [about], 'Models': models})


def _model(entry: Entry) -> dict[str, Any]:
    unit, number = entry.length
    parts = [part for part in (entry.method.name, entry.backbone, entry.neck) if part]
    model: dict[str, Any] = {
        'Name': entry.name,
        'In Collection': entry.collection,
        'Config': entry.path.as_posix(),
        'Metadata': {
            'Long Name': entry.long_name,
            'Training Data': entry.dataset.name,
            unit: number,
            'Batch Size': entry.batch_size,
            'Architecture': parts,
            'Training Techniques': [entry.cfg.optim_wrapper.optimizer.type],
            'Input Size': f'{entry.size[0]}x{entry.size[1]}',
            'Parameters': entry.cost.parameters,
            'FLOPs': entry.cost.macs,
        },
    }
    if entry.old_names:
        # Read by the inferencers of mmdet, mmseg and mmpretrain.
        model['Alias'] = list(entry.old_names)
    if entry.weights and catalogue()[entry.weights].url:
        model['Weights'] = catalogue()[entry.weights].url
    metrics = _metrics(entry)
    if metrics:
        model['Results'] = [
            {'Task': entry.method.task, 'Dataset': entry.dataset.name, 'Metrics': metrics}]
    return model


def _metrics(entry: Entry) -> dict[str, float]:
    """Return measured figures under their names and published ones as `paper ...`."""
    published = entry.results.published
    metrics = {f'paper {name}': value
               for name, value in (published.metrics if published else {}).items()}
    for run in entry.results.measured:
        metrics |= run.metrics
    return metrics


def _dump(content: dict[str, Any]) -> str:
    return _HEADER + yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True)
