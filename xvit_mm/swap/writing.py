"""Config text from changes."""
import keyword
import textwrap
from collections.abc import Mapping
from typing import Any

from .changes import Node

COLUMNS = 100
INDENT = 4


def config_text(header: str, base: str, root: Node) -> str:
    """A config that inherits from `base`, one block for each top-level entry."""
    blocks = ['\n'.join([*_comment(header, 0), f'_base_ = {base!r}'])]
    for name, node in root.children.items():
        blocks.append('\n'.join(_lines(f'{name} = ', node, 0, '')))
    return '\n\n'.join(blocks) + '\n'


def literal(value: Any) -> str:
    """Python source of a plain value, in one line."""
    if isinstance(value, Mapping):
        opening, closing = _braces(value)
        return opening + ', '.join(_key(k, value) + literal(v) for k, v in value.items()) + closing
    if isinstance(value, (list, tuple)):
        items = ', '.join(map(literal, value))
        if isinstance(value, tuple):
            return f'({items},)' if len(value) == 1 else f'({items})'
        return f'[{items}]'
    if isinstance(value, float) and value in (float('inf'), -float('inf')):
        return f"float('{value}')"
    return repr(value)


def _lines(prefix: str, node: Node, indent: int, tail: str) -> list[str]:
    """An entry: its comments, then its source, closing brackets and `tail` on the last line."""
    lines = [line for comment in node.comments for line in _comment(comment, indent)]
    if node.children is None:
        return lines + _value_lines(prefix, node.value, indent, tail)
    plain = _plain(node)
    line = ' ' * indent + prefix + literal(plain) + tail
    if not _has_comments(node) and len(line) <= COLUMNS:
        return [*lines, line]
    opening, closing = _braces(plain)
    lines.append(' ' * indent + prefix + opening)
    children = {'_delete_': Node(True)} if node.replaces else {}
    children |= node.children
    for i, (key, child) in enumerate(children.items()):
        end = closing + tail if i == len(children) - 1 else ','
        lines += _lines(_key(key, plain), child, indent + INDENT, end)
    return lines


def _value_lines(prefix: str, value: Any, indent: int, tail: str) -> list[str]:
    line = ' ' * indent + prefix + literal(value) + tail
    if len(line) <= COLUMNS or not isinstance(value, (Mapping, list, tuple)) or not value:
        return [line]
    if isinstance(value, Mapping):
        (opening, closing), items = _braces(value), [(_key(k, value), v) for k, v in value.items()]
    else:
        opening, closing = '[]' if isinstance(value, list) else '()'
        items = [('', item) for item in value]
    lines = [' ' * indent + prefix + opening]
    for i, (key, item) in enumerate(items):
        end = closing + tail if i == len(items) - 1 else ','
        if end != ',' and isinstance(value, tuple):
            end = ',' + end
        lines += _value_lines(key, item, indent + INDENT, end)
    return lines


def _plain(node: Node) -> Any:
    if node.children is None:
        return node.value
    start = {'_delete_': True} if node.replaces else {}
    return start | {key: _plain(child) for key, child in node.children.items()}


def _has_comments(node: Node) -> bool:
    return any(child.comments or _has_comments(child) for child in (node.children or {}).values())


def _comment(text: str, indent: int) -> list[str]:
    start = ' ' * indent + '# '
    # Paths and commands stay whole, so that they can be copied.
    return textwrap.wrap(text, COLUMNS, initial_indent=start, subsequent_indent=start,
                         break_long_words=False, break_on_hyphens=False)


def _words(mapping: Mapping[str, Any]) -> bool:
    return all(isinstance(k, str) and k.isidentifier() and not keyword.iskeyword(k)
               for k in mapping)


def _braces(mapping: Mapping[str, Any]) -> tuple[str, str]:
    return ('dict(', ')') if _words(mapping) else ('{', '}')


def _key(key: Any, mapping: Mapping[str, Any]) -> str:
    return f'{key}=' if _words(mapping) else f'{key!r}: '
