"""Write the files of the model zoo."""
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from xvit_mm.utils.complexity import Cost

from .cost import measure
from .entries import Entry, read_entries
from .metafiles import metafiles, read_costs
from .page import PAGE, page


def render(entries: list[Entry]) -> dict[Path, str]:
    """Return the text of all files, by path, for entries with their costs."""
    return {PAGE: page(entries), **metafiles(entries)}


def write_zoo(
    root: Path,
    *,
    keep_costs: bool = False,
    report: Callable[[str, Cost], None] = lambda name, cost: None,
) -> list[Path]:
    """Write the page, the metafiles and the index of the repository at `root`.

    Args:
        root: folder with `configs/`.
        keep_costs: take parameters and MACs from the metafiles that are there, and measure only
            what is new.
        report: called with each config that was measured.

    Returns:
        the files, of which nothing is written before all is known.

    Raises:
        ConfigError: a config or `configs/results.yml` is wrong.
    """
    entries = [_add_cost(entry, report)
               for entry in read_entries(root, read_costs(root) if keep_costs else None)]
    files = render(entries)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding='utf-8')
    return list(files)


def _add_cost(entry: Entry, report: Callable[[str, Cost], None]) -> Entry:
    if entry.cost is not None:
        return entry
    cost = measure(entry.cfg, entry.size)
    report(entry.name, cost)
    return replace(entry, cost=cost)
