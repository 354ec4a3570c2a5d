"""Read the published and measured results of the configs from `configs/results.yml`."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.shipped_configs import list_configs

RESULTS = Path('configs', 'results.yml')
METRICS = ('box AP', 'mask AP', 'mIoU', 'mIoU with --tta', 'top-1')
_PUBLISHED = {'source', 'parameters (M)', 'MACs (G)', 'at', 'note', *METRICS}
_MEASURED = {'setting', 'command', 'log', *METRICS}


@dataclass(frozen=True)
class Paper:
    """Where results are published."""

    title: str
    url: str


@dataclass(frozen=True)
class Published:
    """Results of a model that a paper reports.

    metrics: in percent, by names out of `METRICS`.
    parameters: in millions.
    macs: in 10^9; papers say FLOPs.
    at: the image size for which it gives `macs`, where that is not the customary one.
    note: what a reader must know to compare.
    """

    metrics: dict[str, float]
    paper: Paper
    parameters: float | None = None
    macs: float | None = None
    at: str = ''
    note: str = ''


@dataclass(frozen=True)
class Measured:
    """Results of a run of this code.

    metrics: in percent.
    setting: what the command does not say: weights, length, number of runs.
    log: file in the repository that has the figures.
    """

    metrics: dict[str, float]
    command: str
    setting: str = ''
    log: str = ''


@dataclass(frozen=True)
class Results:
    """Both kinds of result of one config."""

    published: Published | None = None
    measured: tuple[Measured, ...] = ()


def read_results(root: Path) -> dict[str, Results]:
    """Return the results by the name of the config.

    Raises:
        ConfigError: the file names a config that does not exist, a paper that it does not
            describe, or an entry that does not exist; or a measured result has no command.
    """
    content = yaml.safe_load((root / RESULTS).read_text(encoding='utf-8'))
    papers = {name: Paper(**paper) for name, paper in content['papers'].items()}
    configs = {path.stem for path in list_configs(root / 'configs')}
    results = {}
    for name, kinds in content['configs'].items():
        if name not in configs:
            raise ConfigError(f'{RESULTS}: there is no config {name!r}')
        _check(name, kinds, {'paper', 'measured'})
        published = kinds.get('paper')
        results[name] = Results(
            published=_published(name, published, papers) if published else None,
            measured=tuple(_measured(name, run) for run in kinds.get('measured', ())))
    return results


def _published(name: str, given: Mapping[str, Any], papers: Mapping[str, Paper]) -> Published:
    _check(name, given, _PUBLISHED)
    if given.get('source') not in papers:
        raise ConfigError(f'{RESULTS}: {name}: source {given.get("source")!r} is not one of the '
                          f'papers {", ".join(papers)}')
    return Published(
        metrics=_metrics(given), paper=papers[given['source']],
        parameters=given.get('parameters (M)'), macs=given.get('MACs (G)'),
        at=given.get('at', ''), note=given.get('note', ''))


def _measured(name: str, given: Mapping[str, Any]) -> Measured:
    _check(name, given, _MEASURED)
    if not given.get('command') or not _metrics(given):
        raise ConfigError(f'{RESULTS}: {name}: a measured result needs a command and one of '
                          f'{", ".join(METRICS)}')
    return Measured(metrics=_metrics(given), command=given['command'],
                    setting=given.get('setting', ''), log=given.get('log', ''))


def _metrics(given: Mapping[str, Any]) -> dict[str, float]:
    return {name: given[name] for name in METRICS if name in given}


def _check(name: str, given: Mapping[str, Any], known: set[str]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(
                f'{RESULTS}: {name}: no entry {key!r}; there are: {", ".join(sorted(known))}')
