"""Values from outside: JSON read strictly, and bounds of plain values.

In: a text, or a value. Out: the value, made of text, numbers, true, false, null, lists and mappings; or a ValueError
that says what is wrong with it. Knows nothing of files and of the meaning of a value.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pave.text.shown import quoted

DEEPEST = 32  # lists and mappings inside each other, in a text from outside
BITS = 64  # of an integer in a config
DIGITS = 64  # of an integer in JSON: files of Hugging Face have 1000000000000000019884624838656 for "no limit"
SPACE = " \t\n\r"  # of JSON
FEW, DEEP, WORDY = 1_000, 8, 4_096  # values, levels, and characters of a text, where no config declares a mapping


class TooDeep(ValueError):
    """Lists and mappings inside each other, beyond the limit."""


def json_value(text: str | bytes, deepest: int = DEEPEST) -> Any:
    """The value of a JSON text (bytes: in UTF-8). Refused beyond the standard and Python's parser: a duplicate key, a
    number that is not finite, an integer of over 64 digits, nesting beyond `deepest`."""
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None
    value, end = json_first(text, len(text) - len(text.lstrip(SPACE)), deepest)
    if rest := text[end:].lstrip(SPACE):
        raise _not_json("Extra data", text, len(text) - len(rest))
    return value


def json_first(text: str, at: int, deepest: int = DEEPEST) -> tuple[Any, int]:
    """The JSON value that begins at a place in a text, and the place behind it. Refused as in `json_value`."""
    try:
        value, end = PARSER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _not_json(error.msg, text, error.pos) from None
    except RecursionError:
        raise TooDeep(f"nested over {deepest} deep") from None
    if depth(value, deepest) > deepest:
        raise TooDeep(f"nested over {deepest} deep")
    return value, end


def _not_json(cause: str, text: str, at: int) -> ValueError:
    error = json.JSONDecodeError(cause, text, at)
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return ValueError(f"not JSON ({cause.removesuffix(' at')} at {line}column {error.colno})")  # "Unterminated … at"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {quoted(key)} is there twice")
    return mapping


def _integer(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"an integer of {len(digits.lstrip('-')):,} digits, at most {DIGITS} are read")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{quoted(number)[1:-1]} is not a finite number")
    return value


PARSER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_finite, parse_int=_integer, parse_float=_finite)


def depth(value: Any, most: int) -> int:
    """How deep lists and mappings are inside each other; counted up to `most` + 1."""
    deep, level = 0, [value]
    while deep <= most and (nested := [each for each in level if isinstance(each, dict | list | tuple)]):
        level = [child for each in nested for child in (each.values() if isinstance(each, dict) else each)]
        deep += 1
    return deep


def plain(value: Any, few: int = FEW, deep: int = DEEP) -> Any:
    """The value itself; a ValueError if it is not plain, or has over `few` values or `deep` levels."""
    if depth(value, deep) > deep:
        raise TooDeep(f"nested over {deep} deep")
    count, left = 0, [value]
    while left:
        each = left.pop()
        count += 1
        if count > few:
            raise ValueError(f"has over {few:,} values")
        if isinstance(each, Mapping):
            left += [*each.keys(), *each.values()]
            if not all(isinstance(key, str) for key in each):
                raise ValueError(f"has a key that is not text: {quoted(next(k for k in each if type(k) is not str))}")
        elif isinstance(each, list | tuple):
            left += each
        else:
            _plain_scalar(each)
    return value


def _plain_scalar(value: Any) -> None:
    if isinstance(value, str):
        if len(value) > WORDY:
            raise ValueError(f"has a text of {len(value):,} characters, at most {WORDY:,} are read")
    elif isinstance(value, int):
        if not -(2 ** (BITS - 1)) <= value < 2**BITS:
            raise ValueError(f"has an integer of {value.bit_length():,} bits, at most {BITS} are read")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"has {value}, which is not a finite number")
    elif value is not None and not isinstance(value, PurePath):
        raise ValueError(f"has a {type(value).__name__}; write text, numbers, true, false, null, lists or mappings")
