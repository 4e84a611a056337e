"""JSON texts: the canonical text of a value, and strict parsing of texts from outside.

In: a value, or a text from outside. Out: one text per value; an ambiguous or malformed text is FileDamaged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pave.errors import FileDamaged
from pave.files.atomic import reading
from pave.text.values import DEEPEST, TooDeep, json_value

AGAIN = "download or create it again"  # for any kind of file; callers that know the kind replace it
MAX_JSON = 1 << 20  # bytes; a text that names every layer of a 7B base takes 20 kB


class NestedTooDeep(FileDamaged):
    """Lists and mappings inside each other, beyond the limit."""


def canonical(value: Mapping[str, Any]) -> str:
    """The canonical JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file. It is small because parsing takes up to thirty times its bytes of memory."""
    with reading(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_JSON:
            raise FileDamaged(path, f"has {size:,} bytes, but such a file has at most {MAX_JSON:,}", AGAIN)
        return parse_json(path, file.read(), "text")


def parse_json(path: Path, text: str | bytes, what: str, deepest: int = DEEPEST) -> dict[str, Any]:
    """The JSON object of a text, which errors call `what`. NestedTooDeep beyond `deepest` levels."""
    try:
        value = json_value(text, deepest)
        if "\\ud" in (text if isinstance(text, str) else text.decode()).lower():
            canonical({"": value}).encode()  # a lone surrogate has no UTF-8, so it could not be written again
    except TooDeep as error:
        raise NestedTooDeep(path, f"its {what} is {error}", AGAIN) from None
    except ValueError as error:
        cause = str(error) if str(error).startswith("not ") else f"not JSON ({error})"
        raise FileDamaged(path, f"its {what} is {cause}", AGAIN) from None
    if not isinstance(value, dict):
        raise FileDamaged(path, f"its {what} is not a JSON object", AGAIN)
    return value
