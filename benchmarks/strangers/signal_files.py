"""Arrays, pictures and texts of numbers that are almost right. In: a real file. Out: a changed one."""

from __future__ import annotations

import struct
import zlib
from random import Random

from mutations import mutated_bytes, words


def npy(rng: Random, data: bytes) -> bytes:
    """An array file with another header, of the right length mostly."""
    body = data[128:]
    fields = {"descr": "'<f4'", "fortran_order": "False", "shape": "(200, 6)"}
    shapes = (
        "(2000000000000, 6)",
        "(1099511627776,)",
        "(10**12, 6)",
        "()",
        "(-1, 6)",
        "(200, -6)",
        "(0, 6)",
        "(6, 200)",
        "(1200,)",
        "(200, 6, 1)",
    )
    more = (
        "(True, 6)",
        "(2e2, 6)",
        "'200, 6'",
        "[200, 6]",
        "(" + "1, " * 60 + "1200)",
        "(9" + "9" * 5000 + ", 6)",
        "(9999999, 0)",
        "(200, 6",
        "None",
        "{}",
    )
    types = (
        "'|O'",
        "'<f8'",
        "'<U1'",
        "'|V4'",
        "'<c8'",
        "'|b1'",
        "'<M8[s]'",
        "[('a', '<f4'), ('b', '|O')]",
        "'>f4'",
        "'<f2'",
        "'<i8'",
        "'f4, f4'",
        "1",
        "'x'",
    )
    deep = (
        "(" * 100 + ")" * 100,
        "(" * 5000,
        "-" * 5000 + "1",
        "[" * 90 + "]" * 90,
        "'<" + "f" * 5000 + "'",
        "__import__('os')",
        "'\\ud800'",
        "b'<f4'",
        "'<f4",
        "{'a': 1}",
    )
    fields[rng.choice(("shape", "shape", "descr"))] = rng.choice((*shapes, *more, *types, *deep))
    if rng.random() < 0.15:
        fields["fortran_order"] = rng.choice(("True", "1", "None", "'x'"))
    if rng.random() < 0.1:
        fields.pop(rng.choice(list(fields)))
    if rng.random() < 0.1:
        fields[rng.choice(("extra", "a\\n", "descr "))] = "1"
    text = "{" + ", ".join(f"'{key}': {value}" for key, value in fields.items()) + ", }"
    if rng.random() < 0.1:
        text = words(rng, text)
    raw = text.encode("utf-8", "surrogatepass") + b" " * (-(len(text) + 11) % 64) + b"\n"
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    size = rng.choice((len(raw), len(raw), len(raw), len(raw), 0, 2**16 - 1, 2**31))
    length = min(size, 2**16 - 1).to_bytes(2, "little") if version == (1, 0) else size.to_bytes(4, "little")
    rest = body[: rng.choice((len(body), len(body), len(body) // 2, 0, len(body) - 3))]
    return (
        rng.choice((b"\x93NUMPY", b"\x93NUMPY", b"\x93NUMPY", b"\x93NUMPY", b"PK\x03\x04"))
        + bytes(version)
        + length
        + raw
        + rest
    )


def png(data: bytes, rng: Random) -> bytes:
    """A PNG with other sizes or types that its checksums agree with, or with changed bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(data, rng, rng.choice((0, 60)))
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", data[16:29])
    width, height = (rng.choice((each, each, 0, 1, each * 2, 30_000, 2**31 - 1)) for each in (width, height))
    depth, colour = rng.choice((depth, depth, 1, 8, 16, 3)), rng.choice((colour, colour, 0, 2, 3, 6, 9))
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, *rest)
    text = b"tEXt" + b"a\0" + b"x" * rng.choice((1, 10**6))
    chunk = len(text[4:]).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big") if rng.random() < 0.3 else b""
    bomb = b"zTXt" + b"a\0\0" + zlib.compress(bytes(10**7))
    chunk += (
        len(bomb[4:]).to_bytes(4, "big") + bomb + zlib.crc32(bomb).to_bytes(4, "big") if rng.random() < 0.2 else b""
    )
    return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + chunk + data[33:]


def numbers(text: str, rng: Random) -> bytes:
    """A text of numbers with one of them changed, or more."""
    parts = text.split(" ")
    for _ in range(rng.choice((1, 1, 3))):
        odd = (
            "nan",
            "inf",
            "-inf",
            "1e400",
            "0",
            "-1",
            "1e308",
            "x",
            "",
            "1e-320",
            "9" * 400,
            "0x1p3",
            "1_0",
            "१",
            "1,5",
            "\0",
            "1" * 5000,
            "#",
            "\n",
            "1+2j",
        )
        parts[rng.randrange(len(parts))] = rng.choice(odd)
    text = " ".join(parts)
    text = rng.choice(
        (
            text,
            text,
            text,
            text[: len(text) // 2],
            text * 2,
            text * 1000,
            "",
            text.replace(" ", ","),
            "axisAlignment = " + text,
            words(rng, text),
        )
    )
    return text.encode("utf-8", "surrogatepass") if rng.random() < 0.95 else text.encode("utf-16", "surrogatepass")
