"""Random changes of files whose structure is known: JSON trees, JSON and YAML texts, safetensors, bytes.

In: a value or bytes, and a random generator. Out: the changed one; equal generators give equal changes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any

from watched import FORGED

DIGITS, DEEP, ONES = "@@digits@@", "@@deep@@", "@@ones@@"  # written as JSON that json.dumps cannot write
RAW = {DIGITS: "9" * 5000, DEEP: "[" * 3000 + "1" + "]" * 3000, ONES: "[" + "1," * 20_000 + "1]"}
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 16, 255, 1000, 4096, 65_536, 10**6, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(-(2**63), 10**30, 10**400, 0.0, -0.0, 0.5, 1.5, 1e-9, 1e-320, 1e38, 1e39, 1e308, math.nan, math.inf, -math.inf),
)
TEXTS = (
    *("", " ", "\0", "\n", "..", "../..", "/", "/dev/zero", "/dev/stdin", "/proc/self/mem", "~", ".", "null", "true"),
    *("a" * 300, "a" * 5_000, "a" * 100_000, "a." * 20_000, "/" * 5_000, "<" * 20_000, "{" * 5_000, "\ud800", "\udfff"),
    *("\x1b[2J\x1b]0;owned\x07", "\r overwritten", "\u202etxt.exe", "x" + FORGED, "x\u2028y", "\x85", "\x7f", "\ufeff"),
    *("{video}", "{question}", "{video}{video}{question}", "{video} <nope> {question}", "<image>", "<|im_end|>", "{0}"),
    *(
        "%s%n",
        "__class__",
        "__init__",
        "forward",
        "weight",
        "nan",
        "1e5",
        "0x10",
        "१२३",
        "İ",
        "ß",
        "é" * 50,
        "👩‍👩‍👧" * 50,
    ),
    *("http://127.0.0.1:9/x", "hf://a/b", "user/repo", "user/repo@main", "C:\\x", "con", "a\\b", "*", "[a-", "(a+)+$"),
)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, 2, 3],
    DIGITS,
    DEEP,
    ONES,
    {"a": {"a": {}}},
)
Path_ = tuple[Any, ...]


def extreme(rng: Random) -> Any:
    """Any value from the edges."""
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, OTHERS))))


def paths(tree: Any, here: Path_ = ()) -> Iterator[Path_]:
    """The paths of all values of a tree, its own first."""
    yield here
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in below:
        yield from paths(value, (*here, key))


def at(tree: Any, path: Path_) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutated(tree: Any, rng: Random, under: str = "") -> Any:
    """A tree with one to three changes; `under`: mostly below this key."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not isinstance(tree, dict | list):
            break
        places = [path for path in paths(tree) if path]
        inside = [path for path in places if path[0] == under]
        if not places:
            break
        path = rng.choice(inside if inside and rng.random() < 0.6 else places)
        parent = at(tree, path[:-1])
        rng.choice(CHANGES)(parent, path[-1], tree, rng)
    return tree


def _replace(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    parent[key] = extreme(rng)


def _nudge(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    """A value of the same kind, a little or far away."""
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int | float):
        parent[key] = rng.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000, value * 10**9, rng.choice(NUMBERS))
        )
    elif isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        piece = rng.choice(TEXTS)
        other = (value[:place], value[:place] + piece + value[place:], value * 2, value.upper(), piece)
        parent[key] = rng.choice((*other, value + FORGED, value + "\x1b[31m"))
    elif isinstance(value, list):
        parent[key] = rng.choice(
            (value * 2, value[::-1], value[1:], [value], value * 1000, [*value, extreme(rng)], value[0] if value else 0)
        )
    elif isinstance(value, dict):
        parent[key] = rng.choice(
            (
                [value],
                list(value),
                {**value, **{str(i): extreme(rng) for i in range(3)}},
                {key: value},
                json.dumps(value),
            )
        )
    else:
        parent[key] = extreme(rng)


def _drop(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    del parent[key]


def _add(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    """A key beside this one: new, or one that stands elsewhere in the tree."""
    names = [str(path[-1]) for path in paths(tree) if path]
    name = rng.choice((rng.choice(names), str(rng.choice(TEXTS)), "colour"))
    if isinstance(parent, dict):
        parent[name] = rng.choice((extreme(rng), copy.deepcopy(parent.get(key))))
    else:
        parent.insert(key, extreme(rng))


def _swap(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    """The value of another place."""
    other = rng.choice([path for path in paths(tree) if path])
    parent[key] = copy.deepcopy(at(tree, other))


def _rename(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    if isinstance(parent, dict):
        parent[rng.choice((rng.choice(TEXTS), str(key).upper(), f"{key}_", f" {key}", str(key)[:-1]))] = parent.pop(key)


def _nest(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    for _ in range(rng.choice((1, 5, 60, 150))):
        parent[key] = rng.choice(([parent[key]], {"a": parent[key]}))


def _many(parent: Any, key: Any, tree: Any, rng: Random) -> None:
    """Many copies beside this one."""
    count = rng.choice((10, 300, 2000))
    if isinstance(parent, dict):
        parent.update({f"{key}{i}" if rng.random() < 0.9 else f"{i}": parent[key] for i in range(count)})
    else:
        parent.extend([parent[key]] * count)


CHANGES: tuple[Callable[[Any, Any, Any, Random], None], ...] = (
    *(_replace, _replace, _replace, _nudge, _nudge, _nudge, _drop, _add, _add, _swap, _swap, _rename, _nest, _many),
)


VALUE = re.compile(r'"[^"\\]*"|-?\d[\d.e+-]*|true|false|null')
LARGEST = 2 << 20  # characters of a text


def json_text(tree: Any, rng: Random, harm: float = 0.2) -> str:
    """A tree as JSON; some of the texts are damaged, too."""
    encoder = json.JSONEncoder(ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, None, 1)))
    pieces, length = [], 0
    for piece in encoder.iterencode(tree):
        pieces.append(piece)
        length += len(piece)
        if length > LARGEST:  # many copies of many copies
            break
    text = "".join(pieces)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    if len(text) > LARGEST:
        return text[:LARGEST]
    return harmed(text, rng) if rng.random() < harm else text


def harmed(text: str, rng: Random) -> str:
    """A text of JSON with one change of its characters."""
    count = sum(1 for _ in VALUE.finditer(text))  # a list of a million places takes more memory than a case may
    chosen = next(islice(VALUE.finditer(text), rng.randrange(count or 1), None), None)
    begin, end = chosen.span() if chosen else (0, len(text))
    other = rng.choice(
        (
            *RAW.values(),
            "NaN",
            "-Infinity",
            "01",
            "1e999999",
            '"\\ud800"',
            '"\\u0000"',
            "'a'",
            "",
            "[",
            "{",
            "}",
            "// c\n",
        )
    )
    key = re.search(r'"[^"\\]*"\s*:\s*("[^"\\]*"|\d+)', text)
    return rng.choice(
        (
            text[:begin] + other + text[end:],
            text[:end],
            text[:begin] + text[end:],
            text[:begin] + text[begin:end] * 2 + text[end:],
            "\ufeff" + text,
            text * 2,
            f"[{text}]",
            text + ",",
            text.replace("{", "{" + key[0] + ",", 1) if key else text + " x",
            text.replace('"', "'"),
            text.replace(":", ":\n" * 2000, 1),
            '{"a":' * 2000 + text,
        )
    )


SNIPPETS = (  # values of YAML that need care
    *(
        "&a [*a]",
        "&d {a: *d}",
        "*nowhere",
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!own x",
    ),
    *(
        "!!binary |",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!float abc",
        "!!int ''",
        "!!bool maybe",
        "!!null x",
        "!!timestamp x",
    ),
    *(
        "2024-13-45",
        "2024-02-30",
        "2024-01-01",
        "2024-01-01T99:00:00Z",
        "0001-01-01 00:00:00 +99:99",
        "12:30:45",
        "190:20:30.15",
    ),
    *(
        "0o8",
        "0x",
        "0b2",
        "0x" + "f" * 5000,
        "9" * 5000,
        "1_000",
        ".nan",
        ".inf",
        "-.inf",
        "1e400",
        "~",
        "",
        "=",
        "<<",
        "?",
        "-",
    ),
    *(
        "[" * 3000,
        "{" * 3000,
        "[" * 400 + "]" * 400,
        "- " * 500,
        "{a: " * 300 + "1" + "}" * 300,
        "[" + "1," * 20_000 + "]",
    ),
    *(
        '"\\ud800"',
        '"\\x1b[2J"',
        "\u202e",
        "\x85",
        "\0",
        "\t",
        "'",
        '"',
        "|",
        ">",
        "@a",
        "`a`",
        "%a",
        "# c",
        "a: b: c",
        "*",
    ),
    *(
        "{<<: [1, 2]}",
        "{<<: {a: 1}}",
        "{? {a: b} : c}",
        "{? [a] : c}",
        "{a: 1, a: 2}",
        "{1: 2}",
        "{null: 1}",
        "{true: 1}",
        "{1.5: x}",
    ),
)
LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
)
LINES = (  # lines of YAML
    *(
        LAUGHS,
        "<<: *a",
        "<<: {name: other}",
        "? {a: b}\n: c",
        "---",
        "...",
        "%YAML 9.9",
        "%TAG ! x",
        "\tx: 1",
        "name: twice",
        "- a",
        "x",
    ),
    *(
        "data: &x {train: *x}",
        "senses: &s {audio: *s}",
        "1: 2",
        "null: 1",
        "2024-01-01: 1",
        "[a, b]: 1",
        "name",
        "? a",
        "base: playroom",
    ),
    *(
        "train: {steps: 0}",
        "fusion: {width: 1000000}",
        "lora:",
        "lora: {r: 100000000}",
        "lora: {target_modules: [a, a, a]}",
    ),
)


def yaml_text(text: str, rng: Random) -> str:
    """A text of YAML with one change of its characters."""
    lines = text.splitlines()
    place = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0 | 1 | 2:  # the value of a key
            values = [match.span(1) for match in re.finditer(r": ([^\n,}\]{\[]*)", text)]
            begin, end = rng.choice(values or [(0, 0)])
            return text[:begin] + rng.choice(SNIPPETS) + text[end:]
        case 3 | 4:
            lines.insert(place, rng.choice(LINES))
        case 5:
            lines[place] = rng.choice(
                (" " * rng.randrange(9) + lines[place].lstrip(), "\t" + lines[place], lines[place] * 2)
            )
        case 6:
            lines[place:place] = lines[: rng.choice((1, 3, len(lines)))]
        case 7:
            at = rng.randrange(len(text))
            return text[:at] + rng.choice((*TEXTS, *SNIPPETS, *"{}[]:,&*!|>'\"%@`#-?")) + text[at + rng.randrange(3) :]
    return "\n".join(lines)


def words(rng: Random, base: str) -> str:
    """A text of a person, with something odd in it."""
    place = rng.randrange(len(base) + 1)
    piece = rng.choice(
        (*TEXTS, *SNIPPETS, chr(rng.randrange(0x110000)), "a" * rng.choice((10**5, 10**6 - 500)), "👍" * 10_000)
    )
    return rng.choice((piece, base[:place] + piece + base[place:], base[:place] + piece, base * rng.choice((2, 1000))))


def mutated_bytes(data: bytes, rng: Random, first: int = 0) -> bytes:
    """A few random changes, mostly within the `first` bytes if given."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 30))):
        if not out:
            break
        place = rng.randrange(min(first, len(out)) if first and rng.random() < 0.7 else len(out))
        match rng.randrange(6):
            case 0:
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[place] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
            case 2:
                out[place : place + 4] = rng.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", rng.randbytes(4))
                )
            case 3:
                out[place:place] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                del out[place : place + rng.randrange(1, 40)]
            case 5:
                if rng.random() < 0.3:
                    del out[place:]
                else:
                    other = rng.randrange(len(out))
                    out[place : place + 16] = out[other : other + 16]
    return bytes(out)


# ---------------------------------------------------------------- safetensors


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: str, body: bytes) -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + body


def seal(text: str, header: dict[str, Any], body: bytes) -> str:
    """The sha256 over a text and the tensors of a header, as `pave.files.tensorfile.digest` has it."""
    sha256 = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    try:
        for name, entry in sorted(header.items()):
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sha256.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode() + body[begin:end])
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return "0" * 64  # such a header is refused before the seal is read
    return sha256.hexdigest()


WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}
PAIRS = {
    "F32": "I32",
    "I32": "F32",
    "F16": "BF16",
    "BF16": "F16",
    "F64": "I64",
    "I64": "F64",
    "I8": "U8",
    "U8": "I8",
    "BOOL": "U8",
}


def changed_tensors(header: dict[str, Any], body: bytes, rng: Random) -> tuple[dict[str, Any], bytes]:
    """Consistent header and data with other names, shapes, types or values."""
    header = copy.deepcopy(header)
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return header, body
    name = rng.choice(names)
    entry = header[name]
    if len(entry["data_offsets"]) != 2:  # the header was changed before
        return header, body
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    match rng.randrange(8):
        case 0:  # other shape, as many values
            count = math.prod(shape)
            entry["shape"] = rng.choice(([count], [1] * 70 + [count], [count, 1], shape[::-1], [*shape, 1]))
        case 1:
            entry["dtype"] = PAIRS[entry["dtype"]]
        case 2:
            part = rng.choice(
                (*TEXTS, "lora.x.A", "fusion.audio.x", f"{name}.scales", name.replace("A", "B"), name + ".A")
            )
            header[part] = header.pop(name)
        case 3:  # without this tensor
            gone = end - begin
            body = body[:begin] + body[end:]
            del header[name]
            for other in header:
                offsets = header[other].get("data_offsets") if other != "__metadata__" else None
                if offsets and offsets[0] >= end:
                    header[other]["data_offsets"] = [offsets[0] - gone, offsets[1] - gone]
        case 4:  # other values
            values = rng.choice(
                (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0", b"\xff" * 4, b"\0\x7c\0\x7c")
            )
            place = begin + 4 * rng.randrange(max(1, (end - begin) // 4))
            body = body[:place] + (values * (end - begin))[: rng.choice((4, end - place))] + body[place:]
            body = body[: len(split_length(header, body))]
        case 5:  # many tensors without values
            kind = rng.choice((name, "lora.layers", "fusion.audio.layers", "x"))
            shapes = rng.choice(([0], [0, 2**40], [2**31, 0], [0, 0, 0]))
            for i in range(rng.choice((5, 300, 5000))):
                header[f"{kind}.{i}{rng.choice(('', '.A', '.B'))}"] = {
                    "dtype": "F32",
                    "shape": shapes,
                    "data_offsets": [len(body)] * 2,
                }
        case 6:  # one more tensor, with values
            more = rng.choice((name.replace(".A", ".C"), f"{name}.scales", f"{name}.codes", "extra", rng.choice(TEXTS)))
            header[more] = {"dtype": "F32", "shape": [4, 2], "data_offsets": [len(body), len(body) + 32]}
            body += rng.randbytes(32)
        case 7:  # halved or doubled
            if shape and shape[0] % 2 == 0 and end == len(body):
                entry["shape"], half = [shape[0] // 2, *shape[1:]], (end - begin) // 2
                entry["data_offsets"] = [begin, end - half]
                body = body[: end - half]
    return header, body


def split_length(header: dict[str, Any], body: bytes) -> bytes:
    """The data that a header announces."""
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return body[: max(ends, default=0)]
