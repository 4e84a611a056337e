"""JSON texts: the canonical one of a value, and those of others, parsed strictly.

In: a value, or a text from outside. Out: equal values give equal texts; a doubtful text is FileDamaged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pave.errors import FileDamaged
from pave.files.atomic import reading

AGAIN = "download it or make it again"  # of a file of any kind; who knows the kind, knows better
MAX_JSON = 1 << 20  # bytes; what names every layer of a 7B base takes 20 kB


def canonical(value: Mapping[str, Any]) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file. Parsed, one takes up to thirty times its bytes of memory."""
    with reading(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MAX_JSON:
            raise FileDamaged(path, f"has {size:,} bytes, a text of its kind at most {MAX_JSON:,}", AGAIN)
        return parse_json(path, file.read(), "text")


def parse_json(path: Path, text: str | bytes, what: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a key stands in it twice")
        return found

    def never(word: str) -> Any:
        raise ValueError(f"it holds {word}")

    try:
        text = text if isinstance(text, str) else text.decode()
        found = json.loads(text, object_pairs_hook=once, parse_constant=never)
        if "\\ud" in text.lower():  # half a character, which nothing can write
            canonical({"": found}).encode()
    except (ValueError, RecursionError) as error:
        raise FileDamaged(path, f"its {what} is not JSON ({error})", AGAIN) from None
    if not isinstance(found, dict):
        raise FileDamaged(path, f"its {what} is not a JSON object", AGAIN)
    return found
