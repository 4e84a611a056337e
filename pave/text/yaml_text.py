"""YAML read as plain data, in bounded time and memory.

In: a text. Out: its value, made of text, numbers, true, false, null, lists and mappings with text keys; or a ValueError
that begins with the line. Knows nothing of recipes and files.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from pave.text.shown import quoted
from pave.text.values import BITS, DEEPEST

LONGEST = 1 << 16  # characters of a text: the parser needs some 50 µs for each value
MOST = 10_000  # values, with those that aliases repeat
TOO_DEEP = f"nested over {DEEPEST} deep; use fewer levels"
TAG = "tag:yaml.org,2002:"
KINDS = {TAG + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
DATE = TAG + "timestamp"
LEADING_ZERO = re.compile("[-+]?0[0-9_]+")


def yaml_value(text: str) -> Any:
    """The value of a YAML text; ValueError("line 3: ...") if it is not valid, not plain data, or too much."""
    if len(text) > LONGEST:
        line = text.count("\n", 0, LONGEST) + 1
        raise ValueError(f"line {line}: the text is longer than {LONGEST:,} characters; shorten it")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        cause = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"line {mark.line + 1 if mark else 1}: not YAML ({cause}); fix that line") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: not YAML (the character {quoted(chr(error.character))}); remove it") from None
    except OverflowError:  # such as "\\UFFFFFFFF", which is no character
        raise ValueError("line 1: not YAML (an escape beyond the characters of Unicode); remove it") from None
    except RecursionError:
        raise ValueError(f"line 1: {TOO_DEEP}") from None


def _flaw(node: Any, cause: str) -> ValueError:
    return ValueError(f"line {node.start_mark.line + 1}: {cause}")


class _Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader for plain data. What a text holds is weighed before anything is made of it: a few aliases
    can stand for billions of values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.deep = self.count = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.deep, self.count = self.deep + 1, self.count + 1
        if self.deep > DEEPEST + 1:
            raise _flaw(self.peek_event(), TOO_DEEP)
        if self.count > MOST:
            raise _flaw(self.peek_event(), f"more than {MOST:,} values; shorten it")
        node = super().compose_node(parent, index)
        self.deep -= 1
        return node

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None:
            _weigh(node, {}, set())
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError, LookupError, AttributeError):  # 5,000 digits, `!!bool maybe`, `!!int ''`
            raise _flaw(node, f"{quoted(node.value)} is not a number; put it in quotes") from None
        if type(value) is int and not -(2 ** (BITS - 1)) <= value < 2**BITS:
            raise _flaw(node, f"{quoted(node.value)} needs over {BITS} bits; use a smaller number, or put it in quotes")
        if isinstance(value, float) and not math.isfinite(value):
            raise _flaw(node, f"{quoted(node.value)} is not a finite number; use a number, or put it in quotes")
        return value


def _weigh(node: Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """How many values a node holds with those that aliases repeat, and how deep; every node checked once."""
    if id(node) in above:
        raise _flaw(node, "contains itself; write the values out")
    if id(node) not in known:
        _check(node)
        parts = [] if isinstance(node, ScalarNode) else node.value
        children = [each for pair in parts for each in pair] if isinstance(node, MappingNode) else parts
        above.add(id(node))
        sizes = [_weigh(child, known, above) for child in children]
        above.remove(id(node))
        size = 1 + sum(count for count, _ in sizes)
        deep = (not isinstance(node, ScalarNode)) + max((d for _, d in sizes), default=0)
        if size > MOST or deep > DEEPEST:
            what = f"more than {MOST:,} values" if size > MOST else f"nested over {DEEPEST} deep"
            raise _flaw(node, f"aliases make it {what}; write less of them")
        known[id(node)] = size, deep
    return known[id(node)]


def _base(node: Node) -> int | None:
    """The base to which YAML 1.1 reads what looks like a time of day or a decimal number (yaml.org/type/int.html)."""
    if ":" in node.value:
        return 60
    return 8 if node.tag == TAG + "int" and LEADING_ZERO.fullmatch(str(node.value)) else None


def _check(node: Node) -> None:
    if node.tag == DATE:
        raise _flaw(node, f"{quoted(node.value)} reads as a date; put it in quotes")
    if node.tag in (TAG + "int", TAG + "float") and (base := _base(node)):
        raise _flaw(node, f"{quoted(node.value)} reads as a number to the base {base}; write it as usual, or in quotes")
    if node.tag not in KINDS:
        raise _flaw(
            node, f"not YAML of plain data (the tag {quoted(node.tag.removeprefix(TAG))}); write text or numbers"
        )
    keys: set[str] = set()
    for key, _ in node.value if isinstance(node, MappingNode) else ():
        if key.tag == TAG + "merge":
            continue
        if key.tag != TAG + "str":
            if not isinstance(key, ScalarNode):
                raise _flaw(key, "a key is a list or a mapping; write text")
            raise _flaw(key, f"the key {quoted(key.value)} is not text; put it in quotes")
        if key.value in keys:
            raise _flaw(key, f"the key {quoted(key.value)} is there twice; remove one")
        keys.add(key.value)
