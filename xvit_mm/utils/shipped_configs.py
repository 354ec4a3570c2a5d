"""Find the configs that ship with the package by name.

The products lie in `configs/` itself, experiments on small data sets in `configs/small/`, settings
of a single paper in `configs/vt_paper/`. `configs/renamed/` holds a two-line config for every name
that has changed, so that old commands and `mim` still find it.
"""
import re
import warnings
from difflib import get_close_matches
from pathlib import Path

RENAMED = 'renamed'
_PACKAGE = Path(__file__).resolve().parents[1]


def config_folder() -> Path:
    """Return the `configs` folder of this installation: of the wheel, or of the checkout."""
    folders = (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs')
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def list_configs(folder: Path) -> list[Path]:
    """Return the complete configs below a `configs` folder, sorted by name.

    Leaves out what lies in `_base_` and the aliases in `renamed`.
    """
    return sorted(
        (path for path in folder.rglob('*.py')
         if path.relative_to(folder).parts[0] not in ('_base_', RENAMED)),
        key=lambda path: path.stem)


def list_renamed(folder: Path) -> dict[str, str]:
    """Return the present name of every renamed config below a `configs` folder, by its old one."""
    return {path.stem: _present_name(path) for path in sorted((folder / RENAMED).glob('*.py'))}


def find_config(name: str) -> Path:
    """Return the path of a shipped config.

    Args:
        name: a bare name, or a path relative to `configs/`; with or without `.py`. An old name
            is accepted with a warning that states the present one.

    Raises:
        FileNotFoundError: no such config; the message names the closest ones.
    """
    folder = config_folder()
    file_name = name if name.endswith('.py') else f'{name}.py'
    path = folder / file_name
    if not path.is_file():
        # Names are unique, whatever the folder.
        known = [*list_configs(folder), *(folder / RENAMED).glob('*.py')]
        path = next((known_path for known_path in known if known_path.name == path.name), path)
    if not path.is_file():
        raise FileNotFoundError(_no_such_config(name, folder))
    if path.parent == folder / RENAMED:
        warnings.warn(
            f'config {path.stem!r} is now called {_present_name(path)!r}; please use that name',
            FutureWarning, stacklevel=3)
    return path


def _present_name(renamed: Path) -> str:
    return re.search(r"_base_ = '[\w./]*?(\w+)\.py'", renamed.read_text(encoding='utf-8')).group(1)


def _no_such_config(name: str, folder: Path) -> str:
    shipped = [path.stem for path in list_configs(folder)]
    close = get_close_matches(Path(name).stem, shipped, n=3)
    hint = f'closest: {", ".join(close)}' if close else (
        f'none of the {len(shipped)} there has a similar name; docs/model_zoo.md lists them')
    return f'no config {name!r} in {folder}; {hint}'
