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

AGAIN = "download or create it again"  # for any kind of file; callers that know the kind replace it
MAX_JSON = 1 << 20  # bytes; a text that names every layer of a 7B base takes 20 kB


def canonical(value: Mapping[str, Any]) -> str:
    """The canonical JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file. It is small because parsing takes up to thirty times its bytes of memory."""
    with reading(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_JSON:
            raise FileDamaged(path, f"has {size:,} bytes, but such a file has at most {MAX_JSON:,}", AGAIN)
        return parse_json(path, file.read(), "text")


def parse_json(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(mapping := dict(pairs)) != len(pairs):
            raise ValueError("duplicate key")
        return mapping

    def never(constant: str) -> Any:
        raise ValueError(f"{constant} is not allowed")

    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=once, parse_constant=never)
        if "\\ud" in text.lower():  # a lone surrogate has no UTF-8, so it could not be written again
            canonical({"": value}).encode()
    except (ValueError, RecursionError) as error:
        raise FileDamaged(path, f"its {what} is not JSON ({error})", AGAIN) from None
    if not isinstance(value, dict):
        raise FileDamaged(path, f"its {what} is not a JSON object", AGAIN)
    return value
