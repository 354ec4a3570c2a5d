"""Environments that differ from the running one, made of links to it in a second.

    python tests/other_environments.py FOLDER [--without NAME ...] [--without-ops] [--pip REQ ...]

makes one by hand, to see what the doctor says about it.
"""
import argparse
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

# Import name -> start of the distributions that bring it.
PACKAGES = {
    'mmdet': ('mmdet', 'onedl_mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl_mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl_mmpretrain'),
    'mmcv': ('mmcv', 'onedl_mmcv'),
    'torchvision': ('torchvision',),
    'timm': ('timm',),
    'xvit_mm': ('xvit_mm', '__editable__'),
}


def make_environment(
    folder: Path, without: Collection[str] = ('xvit_mm',), *, ops: bool = True,
    only: Collection[str] = (), install: Collection[str] = (),
    package: Path | None = ROOT / 'xvit_mm',
) -> str:
    """Make a virtual environment with links to the packages of the running one; return its Python.

    Args:
        without: packages that it lacks.
        only: import names of the packages that it has, with all that these require; all by default.
        ops: False leaves mmcv without its compiled part; upstream's is then called mmcv-lite.
        install: requirements that pip puts in the place of what is there; needs an index.
        package: the copy of xvit_mm that it uses.
    """
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    here = Path(sysconfig.get_path('purelib'))
    site = folder / here.relative_to(sys.prefix)
    hidden = {'xvit_mm', 'pip', *without}  # pip would remove the files that the links lead to
    wanted = entries_of(only) if only else {path.name for path in here.iterdir()}
    for path in map(here.joinpath, wanted):
        starts = [start for name in hidden for start in (name, *PACKAGES.get(name, ()))]
        if not any(re.match(rf'{start}([-.]|$)|__editable__.*{start}', path.name)
                   for start in starts):
            (site / path.name).symlink_to(path)
    if not ops:
        _drop_ops(site)
    if package:
        (site / 'xvit_mm').symlink_to(package)
    if install:
        subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--upgrade',
                        '--target', site.parent / 'other', *install], check=True)
        new = list((site.parent / 'other').iterdir())
        for path in new:
            for old in site.glob(f'{path.name.partition("-")[0]}-*.dist-info'):
                old.unlink()
            (site / path.name).unlink(missing_ok=True)
        for path in new:
            (site / path.name).symlink_to(path)
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


def _drop_ops(site: Path) -> None:
    real = (site / 'mmcv').resolve()
    (site / 'mmcv').unlink()
    (site / 'mmcv').mkdir()
    for path in real.iterdir():
        if not path.name.startswith('_ext'):
            (site / 'mmcv' / path.name).symlink_to(path)
    for info in site.glob('mmcv-*.dist-info'):  # OneDL has no distribution of the kind
        metadata = (info / 'METADATA').read_text()
        info.unlink()
        lite = site / f'mmcv_lite-{info.stem.partition("-")[2]}.dist-info'
        lite.mkdir()
        (lite / 'METADATA').write_text(
            re.sub(r'^Name: .*$', 'Name: mmcv-lite', metadata, flags=re.MULTILINE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--without', nargs='*', default=[], metavar='NAME')
    parser.add_argument('--without-ops', action='store_true')
    parser.add_argument('--pip', nargs='*', default=[], metavar='REQUIREMENT')
    args = parser.parse_args()
    print(make_environment(args.folder, args.without, ops=not args.without_ops, install=args.pip))


if __name__ == '__main__':
    main()
