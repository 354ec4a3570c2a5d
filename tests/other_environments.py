"""Environments that differ from the running one, made of links to it in a second."""
import re
import subprocess
import sys
import sysconfig
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def make_environment(
    folder: Path, *, only: Collection[str] = (), without: Collection[str] = (), ops: bool = True,
    install: Collection[str] = (), package: Path = ROOT / 'xvit_mm',
) -> str:
    """Make a virtual environment with links to the packages of the running one; return its Python.

    Args:
        only: import names of the packages that it has, with all that these require; all by default.
        without: import names of packages that it lacks.
        ops: False leaves mmcv without its compiled part; upstream's is then called mmcv-lite.
        install: requirements that pip puts in the place of what is there; needs an index.
        package: the copy of xvit_mm that it uses.
    """
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    here = Path(sysconfig.get_path('purelib'))
    site = folder / here.relative_to(sys.prefix)
    # pip would remove the files that the links lead to.
    hidden = re.compile(rf'({"|".join(["xvit_mm", "pip", *without])})([-.]|$)|__editable__.*xvit_mm')
    for name in entries_of(only) if only else {path.name for path in here.iterdir()}:
        if not hidden.match(name):
            (site / name).symlink_to(here / name)
    (site / 'xvit_mm').symlink_to(package)
    if not ops:
        drop_ops(site)
    if install:
        replace(site, install)
    return str(folder / 'bin' / 'python')


def entries_of(names: Collection[str]) -> set[str]:
    """Entries of the package folder that some packages consist of, with all that they require."""
    todo, seen, entries = [prefix + name for name in names for prefix in ('', 'onedl-')], set(), set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            one = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of the other family, or for another system
            continue
        entries |= {file.parts[0] for file in one.files} - {'..', '__pycache__'}
        requirements = map(Requirement, one.requires or ())
        todo += [each.name for each in requirements
                 if each.marker is None or each.marker.evaluate({'extra': ''})]
    return entries


def drop_ops(site: Path) -> None:
    """Take the compiled part from mmcv."""
    real = (site / 'mmcv').resolve()
    (site / 'mmcv').unlink()
    (site / 'mmcv').mkdir()
    for path in real.iterdir():
        if not path.name.startswith('_ext'):
            (site / 'mmcv' / path.name).symlink_to(path)
    for info in site.glob('mmcv-*.dist-info'):  # OneDL has no distribution of the kind
        text = (info / 'METADATA').read_text()
        info.unlink()
        lite = site / info.name.replace('mmcv', 'mmcv_lite')
        lite.mkdir()
        (lite / 'METADATA').write_text(text.replace('Name: mmcv\n', 'Name: mmcv-lite\n'))


def replace(site: Path, requirements: Collection[str]) -> None:
    """Put other versions of packages in the place of the links to them."""
    other = site.parent / 'other'
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', other,
                    *requirements], check=True)
    for path in sorted(other.iterdir()):  # a package comes before its dist-info
        for old in (site / path.name, *site.glob(f'{path.name.partition("-")[0]}-*.dist-info')):
            old.unlink(missing_ok=True)
        (site / path.name).symlink_to(path)
