"""The checkpoints in the work folder of a run."""
import os
import re
from collections.abc import Sequence
from pathlib import Path

LAST = 'last_checkpoint'
TEMPLATES = ('epoch_{}.pth', 'iter_{}.pth')


def checkpoints_in(
    folders: str | Path | Sequence[str | Path],
    templates: Sequence[str] = TEMPLATES,
) -> list[Path]:
    """Return the checkpoints of a run, the ones to try first in front.

    That is the one that `last_checkpoint` names, unless another is both newer and of a higher
    number, as after a kill between the two being written; then the others, the higher number first.

    Args:
        folders: the work folder and, where checkpoints are written elsewhere, that folder.
        templates: names of the checkpoints, with {} for the number.
    """
    folders = [Path(f) for f in ([folders] if isinstance(folders, (str, Path)) else folders)]
    patterns = [re.compile(r'(\d+)'.join(map(re.escape, template.split('{}'))))
                for template in templates]
    numbers = {}
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            match = next(filter(None, (p.fullmatch(path.name) for p in patterns)), None)
            if match and path.is_file():
                numbers[path] = int(match[1])
    paths = sorted(numbers, key=lambda path: (numbers[path], path.stat().st_mtime), reverse=True)
    last = _last_checkpoint(folders)
    if last is None:
        return paths
    written = last.stat().st_mtime
    newer = [path for path in paths if path != last and path.stat().st_mtime > written
             and numbers[path] > numbers.get(last, -1)]
    return [*newer, last, *(path for path in paths if path not in (*newer, last))]


def _last_checkpoint(folders: Sequence[Path]) -> Path | None:
    """The file that `last_checkpoint` names, wherever its folder has been moved to."""
    try:
        text = (folders[0] / LAST).read_text(errors='replace').strip()
    except OSError:
        return None
    if not text or '\0' in text:
        return None
    for path in (folders[0] / text, *(folder / os.path.basename(text) for folder in folders)):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # a name that no file can have
            continue
    return None
