"""Changes as the text of a config; yapf does the layout."""
import keyword
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from yapf.yapflib.yapf_api import FormatCode

from .changes import Node

COLUMNS = 100
STYLE = {
    'based_on_style': 'pep8',
    'column_limit': COLUMNS,
    'blank_lines_around_top_level_definition': 1,
    'each_dict_entry_on_separate_line': True,
    'split_before_first_argument': True,
}


def config_text(header: str, base: str, root: Node) -> str:
    """Write a config that inherits from `base`, with a block for each top-level entry."""
    blocks = ['\n'.join([*_comment(header), f'_base_ = {base!r}'])]
    for name, node in root.children.items():
        blocks.append('\n'.join([*_comments(node, 0), f'{name} = {_source(node, 1)}']))
    return FormatCode('\n\n'.join(blocks) + '\n', style_config=STYLE)[0]


def literal(value: Any) -> str:
    """Write a plain value as Python source, in one line."""
    if isinstance(value, Mapping):
        return _mapping({key: literal(item) for key, item in value.items()}, value)
    if isinstance(value, (list, tuple)):
        items = ', '.join(map(literal, value))
        if isinstance(value, tuple):
            return f'({items},)' if len(value) == 1 else f'({items})'
        return f'[{items}]'
    if isinstance(value, float) and value in (float('inf'), -float('inf')):
        return f"float('{value}')"
    return repr(value)


def _source(node: Node, depth: int) -> str:
    """Write an entry, the comments of its children on lines of their own."""
    if node.children is None:
        return literal(node.value)
    children = {'_delete_': Node(True)} if node.replaces else {}
    children |= node.children
    items = {key: _source(child, depth + 1) for key, child in children.items()}
    if not any(child.comments for child in children.values()):
        return _mapping(items, children)
    entries = []
    for key, item in items.items():
        entries += [*_comments(children[key], depth), f'{_key(key, children)}{item},']
    opening, closing = _braces(children)
    entries[-1] = entries[-1].rstrip(',')
    return '\n'.join([opening, *entries]) + closing


def _mapping(sources: Mapping[Any, str], keys: Mapping) -> str:
    opening, closing = _braces(keys)
    return opening + ', '.join(_key(key, keys) + item for key, item in sources.items()) + closing


def _comments(node: Node, depth: int) -> Iterator[str]:
    for comment in node.comments:
        yield from _comment(comment, depth)


def _comment(text: str, depth: int = 0) -> list[str]:
    # Paths and commands stay whole, so that they can be copied.
    return textwrap.wrap(
        text, COLUMNS - 4 * depth, initial_indent='# ', subsequent_indent='# ',
        break_long_words=False, break_on_hyphens=False)


def _are_words(keys: Mapping) -> bool:
    return all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)
               for key in keys)


def _braces(keys: Mapping) -> tuple[str, str]:
    return ('dict(', ')') if _are_words(keys) else ('{', '}')


def _key(key: Any, keys: Mapping) -> str:
    return f'{key}=' if _are_words(keys) else f'{key!r}: '
