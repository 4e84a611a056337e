"""The files of a base, judged before transformers opens them: a stranger's folder costs little and runs nothing.

In: a folder, or what the config.json of any base says. Out: parsed files, or a BaseModelError that names the file.
Knows nothing of models and tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pave.errors import BaseModelError, FileDamaged
from pave.files import json_text
from pave.text.values import DEEPEST

CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
ADAPTER, TOKENIZER = "adapter_config.json", "tokenizer.json"
HUGE_ID = re.compile(rb'":\s*([1-9]\d{8,})\s*[,}]')  # a number of nine digits or more, as the value of a key
# Files that are parsed in Python, and their largest size in bytes: parsing takes up to thirty times as much memory. An
# index names every expert of a large mixture, a tokenizer_config.json thousands of reserved tokens.
PARSED = {
    **dict.fromkeys((CONFIG, GENERATION, ADAPTER, "pave.json", "chat_template.json"), 1 << 20),
    **dict.fromkeys(("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"), 1 << 20),
    **dict.fromkeys((INDEX, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), 4 << 20),
}
READ = (".json", ".jinja", ".txt", ".model")  # endings of further files that transformers reads whole
LARGEST = 1 << 26  # bytes of those
AGAIN = "download it again"
# Numbers that a model is built from, by their keys. The deepest models have some 130 layers.
LAYERS, MANY_LAYERS = re.compile(r"(?:.*_)?(?:layers|depth|blocks)"), 512
COUNTS, MANY = re.compile(r"(?:num|n)_.*"), 1 << 16
HUGE = 1 << 40  # of any other number
CODE = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
NO_CODE = "PAVE never runs code of a base; use its conversion for transformers, whose name often ends in -hf"


def judge(source: object, place: str) -> None:
    """Raise unless every file of a folder, which holds plain files only (`refuse_odd_inside`), has a reasonable size,
    and every text is what it claims to be."""
    for path in _entries(Path(place)):
        _refuse_large(source, path)
    _refuse_huge_ids(source, Path(place, TOKENIZER))
    parsed = {name: read(source, Path(place, name)) for name in PARSED}
    if parsed[ADAPTER] and parsed[CONFIG]:
        cause = f"{ADAPTER}: an adapter of PEFT lies beside the base, and would be loaded into it"
        raise BaseModelError(f"{source}: {cause}; move it to its own folder, and apply that as a patch")
    if parsed[ADAPTER]:
        cause = "it is an adapter of PEFT, not a base"
        raise BaseModelError(f"{source}: {cause}; load its base, then apply_patch({str(source)!r})")
    if parsed[INDEX]:
        _refuse_shards(source, place, parsed[INDEX])


def read(source: object, path: Path) -> dict[str, Any]:
    """A JSON file of a base; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(PARSED[path.name] + 1)
        if len(text) > PARSED[path.name]:
            cause = f"has more than {PARSED[path.name]:,} bytes, which such a file never has"
            raise BaseModelError(f"{source}: its {path.name} {cause}; {AGAIN}")
        return json_text.parse_json(path, text, path.name)
    except FileDamaged as error:
        raise BaseModelError(f"{source}: {error.cause}; {AGAIN}") from None
    except OSError as error:
        cause = f"its {path.name} cannot be read ({error.strerror or error})"
        raise BaseModelError(f"{source}: {cause}; check the permissions") from None


def refuse_odd_config(source: object, described: Mapping[str, Any]) -> None:
    """Raise for a config.json that would build an enormous model, or run code."""
    for keys, value in _leaves(described):
        key = next((key for key in reversed(keys) if isinstance(key, str)), "")
        if key in CODE and isinstance(value, str) and "/" in value:
            raise BaseModelError(f"{source}: its config.json has {key}={value!r}, which is code of its own; {NO_CODE}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        most = MANY_LAYERS if LAYERS.fullmatch(key) else MANY if COUNTS.fullmatch(key) else HUGE
        least = 0 if most < HUGE else -HUGE
        if not least <= value <= most:
            cause = f"its config.json has {key}={value:g}; between {least:,} and {most:,} is possible"
            raise BaseModelError(f"{source}: {cause}; {AGAIN}")


def weight_bytes(place: str) -> int:
    """Bytes of all safetensors files of a folder."""
    return sum(path.stat().st_size for path in Path(place).glob("*.safetensors") if path.is_file())


def _entries(folder: Path) -> Iterator[Path]:
    """The files that transformers may open, of a folder and of the one for chat templates in it."""
    for place in (folder, folder / "additional_chat_templates"):
        if place.is_dir():
            yield from (path for path in place.iterdir() if path.suffix in (*READ, ".safetensors"))


def _refuse_large(source: object, path: Path) -> None:
    try:
        found = os.stat(path)
    except OSError as error:
        cause = f"its {path.name} cannot be read ({error.strerror or error})"
        raise BaseModelError(f"{source}: {cause}; {AGAIN}") from None
    if path.suffix in READ and found.st_size > LARGEST:
        cause = f"its {path.name} has {found.st_size:,} bytes, and such a file at most {LARGEST:,}"
        raise BaseModelError(f"{source}: {cause}; {AGAIN}")


def _refuse_huge_ids(source: object, path: Path) -> None:
    """Raise for a tokenizer.json with an enormous id of a token: copying it counts up to there, for minutes."""
    try:
        found = HUGE_ID.search(path.read_bytes()) if path.is_file() else None
    except OSError as error:
        cause = f"its {path.name} cannot be read ({error.strerror or error})"
        raise BaseModelError(f"{source}: {cause}; {AGAIN}") from None
    if found:
        cause = f"its {TOKENIZER} has the number {found[1][:30].decode()}, too large for the id of a token"
        raise BaseModelError(f"{source}: {cause}; {AGAIN}")


def _refuse_shards(source: object, place: str, index: Mapping[str, Any]) -> None:
    """Raise unless an index names files of its own folder that are there."""
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise BaseModelError(f"{source}: its {INDEX} cannot be read (no weight_map); {AGAIN}")
    for file in dict.fromkeys(each if isinstance(each, str) else repr(each) for each in named.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise BaseModelError(
                f"{source}: its {INDEX} names {file!r}, which is no safetensors file beside it; {AGAIN}"
            )
        if not Path(place, file).is_file():
            raise BaseModelError(f"{source}: {file}, which its {INDEX} names, is missing; {AGAIN}")


def _leaves(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value that holds no others, with the keys that lead to it; no recursion, which a deep file would break."""
    left: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while left:
        keys, value = left.pop()
        inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
        if inner is None or len(keys) > DEEPEST:
            yield keys, value
        else:
            left += [((*keys, key), each) for key, each in inner]
