"""Measurements as a file that later ones are compared with."""
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from xvit_mm.utils.config import ConfigError
from xvit_mm.utils.files import replaced_whole

# A recorded ratio may fall by this share.
MARGIN = 0.15

_ORDER = ('first', 'amp', 'threads', 'clock', 'allocator', 'train', 'size', 'batch')

Rows = Sequence[Mapping[str, Any]]


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on besides the models."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else _cpu_name()
    return dict(device=name, system=platform.system(), torch=torch.__version__)


def _cpu_name() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else ()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def read_record(path: str | Path) -> dict[str, Any]:
    """A file that `write_record` wrote.

    Raises:
        ConfigError: it is not one.
    """
    try:
        record = json.loads(Path(path).read_text())
        return dict(machine=record['machine'], rows=list(record['rows']))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path} is not a file of --record: {error!r}') from error


def write_record(path: str | Path, about: Mapping[str, Any], rows: Rows) -> None:
    """Write rows; those of a file of the same machine stay unless they were measured again.

    Raises:
        ConfigError: the file is of another machine, or of something else.
    """
    kept: list[Mapping[str, Any]] = []
    if Path(path).exists():
        before = read_record(path)
        if before['machine'] != about:
            raise ConfigError(f'{path} is of another machine, {before["machine"]}; this one is '
                              f'{dict(about)}: name another file')
        new = {_key(row) for row in rows}
        kept = [row for row in before['rows'] if _key(row) not in new]
    # A model before its peers, whichever piece of the comparisons was measured last.
    ordered = sorted([*kept, *rows], key=lambda row: tuple(row[name] for name in _ORDER))
    lines = ',\n'.join(json.dumps(row) for row in ordered)
    with replaced_whole(Path(path)) as partial:
        partial.write_text(
            f'{{"machine": {json.dumps(dict(about))},\n"rows": [\n{lines}\n]}}\n')


def check_against(path: str | Path, about: Mapping[str, Any], rows: Rows) -> None:
    """Compare the ratios of peers with recorded ones.

    Raises:
        ConfigError: a ratio is `MARGIN` below the recorded one, or nothing can be compared.
    """
    record = read_record(path)
    if record['machine'] != about:
        print(f'\n{path} is of another machine, {record["machine"]}: ratios may differ')
    before = {_key(row): row['ratio'] for row in record['rows']}
    found = [(row, before[_key(row)]) for row in rows if _key(row) in before]
    if not found:
        raise ConfigError(f'--check {path}: nothing of this run was recorded with these settings')
    fallen = [f'{row["model"]} at {row["size"][0]} x {row["size"][1]}, batch {row["batch"]}: '
              f'{row["ratio"]:.2f}, recorded {ratio:.2f}'
              for row, ratio in found if row['ratio'] < (1 - MARGIN) * ratio]
    if fallen:
        raise ConfigError('--check: ratios have fallen: ' + '; '.join(fallen))
    print(f'\n{len(found)} ratios are not below the recorded ones')


def _key(row: Mapping[str, Any]) -> tuple:
    """The model, and what it was measured with."""
    return tuple(row[name] for name in (
        'first', 'model', 'train', 'batch', 'amp', 'threads', 'clock', 'allocator',
    )) + tuple(row['size'])


def table_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table: a row for each peer, its time and memory divided by those of ours."""
    lines = ['| ours | peer | | size | batch | ours, ms | images/s | time | memory |',
             '|---|---|---|---|---|---|---|---|---|']
    ours: Mapping[str, Any] = {}
    for row in rows:
        if row['first'] == row['model']:
            ours = row
            continue
        lines.append(
            f'| {_short(row["first"])} | {_short(row["model"])} '
            f'| {"training" if row["train"] else "inference"} '
            f'| {row["size"][0]} x {row["size"][1]} | {row["batch"]} | {ours["ms"]:.0f} '
            f'| {ours["images_per_s"]:.1f} | {row["ratio"]:.2f} | {row["memory_ratio"]:.2f} |')
    return '\n'.join(lines)


def _short(model: str) -> str:
    """The class of a contender, without its package, settings and variant `eager`."""
    name, _, variant = model.rpartition(' ')
    name = name.partition(':')[0].rpartition('.')[2]
    return name if variant == 'eager' else f'{name}, {variant}'


def replace_section(path: str | Path, name: str, text: str) -> None:
    """Put a text between the lines `<!-- NAME -->` and `<!-- end of NAME -->` of a page.

    Raises:
        ConfigError: the page has no such lines.
    """
    page = Path(path).read_text()
    start, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
    before, found, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ConfigError(f'{path} has no lines {start.strip()!r} and {end!r} to write between')
    with replaced_whole(Path(path)) as partial:
        partial.write_text(f'{before}{start}\n{text}\n\n{end}{after}')
