"""What the README says of models, tools and pages is what the repository has."""
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from xvit_mm.models import backbones
from xvit_mm.models.backbones import Backbone

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md')]
PAGES += sorted((ROOT / 'docs').glob('*.md'))


def rows_of_models() -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Class, variant and out_channels of every row of the README's table."""
    name = ''
    pattern = r'^\| (?:`xvit_mm\.(\w+)`[^|]*)?\| ((?:`\w+`(?:, )?)+) \| ([\d, ]+) \|$'
    for kind, variants, channels in re.findall(pattern, README, re.MULTILINE):
        name = kind or name
        for variant in re.findall(r'`(\w+)`', variants):
            yield name, variant, tuple(map(int, channels.split(', ')))


def test_the_table_of_models_has_every_variant_once() -> None:
    variants = [(name, str(variant)) for name in backbones.__all__ if name != 'Backbone'
                for variant in getattr(backbones, name).variants]
    assert sorted(variants) == sorted(row[:2] for row in rows_of_models())


@pytest.mark.parametrize('name, variant, channels', list(rows_of_models()))
def test_the_table_of_models_states_the_out_channels(
    name: str, variant: str, channels: tuple[int, ...]
) -> None:
    cls: type[Backbone] = getattr(backbones, name)
    known = {str(key): key for key in cls.variants}
    with torch.device('meta'):
        backbone = cls(known[variant])
    assert (backbone.out_channels, backbone.out_strides) == (channels, (4, 8, 16, 32))


def test_the_table_of_tools_has_every_tool_and_no_other() -> None:
    table = README[README.index('## Tools'):README.index('## Documentation')]
    named = set(re.findall(r'[\w/]+\.(?:py|sh)\b', table))
    named = {name.removeprefix('tools/') for name in named}
    # An old name, kept for those who know it.
    there = {path.name for path in (ROOT / 'tools').glob('*.[ps][yh]')} - {'draw_tokens.py'}
    assert named == there


def test_every_page_is_in_the_index() -> None:
    pages = {f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')}
    assert pages <= set(re.findall(r'\((docs/\w+\.md)\)', README))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r'\]\(([^)#\s]+)', page.read_text(encoding='utf-8')):
        if '://' not in link:
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_files_named_in_pages_exist(page: Path) -> None:
    # A name in capitals stands for many.
    pattern = r'(?<![\w/])(?:tools|tests|configs)/[a-z0-9_/.-]+?\.(?:py|sh|yml)\b'
    named = re.findall(pattern, page.read_text(encoding='utf-8'))
    assert [name for name in named if not (ROOT / name).exists()] == []
