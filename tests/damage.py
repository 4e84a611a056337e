"""Ways in which a patch file can be damaged: what becomes of its bytes, and the error that must name it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pave.errors import PatchDamaged, PatchError, PatchFormatError


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    def damaged(data: bytes) -> bytes:
        header, body = split(data)
        change(header)
        return join(header, body)

    return damaged


def with_metadata(**values: str) -> Callable[[bytes], bytes]:
    return with_header(
        lambda header: header["__metadata__"].update({f"pave.{key}": text for key, text in values.items()})
    )


def with_config(key: str, value: Any) -> Callable[[bytes], bytes]:
    def change(header: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["pave.config"])
        config[key] = value
        header["__metadata__"]["pave.config"] = json.dumps(config)

    return with_header(change)


def first(header: dict[str, Any]) -> dict[str, Any]:
    """The entry of the tensor at the beginning of the data."""
    return next(entry for name, entry in header.items() if name != "__metadata__" and entry["data_offsets"][0] == 0)


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGE: dict[str, tuple[type[PatchError], Callable[[bytes], bytes]]] = {
    "empty": (PatchDamaged, lambda data: b""),
    "seven bytes": (PatchDamaged, lambda data: data[:7]),
    "cut in the header": (PatchDamaged, lambda data: data[:100]),
    "cut in the tensors": (PatchDamaged, lambda data: data[:-1]),
    "longer": (PatchDamaged, lambda data: data + b"\0"),
    "LFS pointer": (PatchDamaged, lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "web page": (PatchDamaged, lambda data: b"<!DOCTYPE html><html>404</html>"),
    "zip": (PatchDamaged, lambda data: b"PK\x03\x04" + data),
    "pickle": (PatchDamaged, lambda data: b"\x80\x04\x95" + data),
    "header of 100 MB": (PatchDamaged, lambda data: (10**8).to_bytes(8, "little") + data[8:]),
    "header is a list": (PatchDamaged, lambda data: join("[]", b"")),
    "header is not JSON": (PatchDamaged, lambda data: join("{]", b"")),
    "header is not UTF-8": (PatchDamaged, lambda data: (4).to_bytes(8, "little") + b'{"\xff\xff'),
    "header nests deeply": (PatchDamaged, lambda data: join('{"a":' + "[" * 100_000, b"")),
    "a key twice": (PatchDamaged, lambda data: join('{"__metadata__":{},"__metadata__":{}}', b"")),
    "NaN in the header": (PatchDamaged, lambda data: join('{"a":NaN}', b"")),
    "metadata is a text": (PatchDamaged, with_header(lambda header: header.update(__metadata__="x"))),
    "metadata holds a number": (PatchDamaged, with_header(lambda header: header["__metadata__"].update(a=1))),
    "tensor is a text": (PatchDamaged, with_header(lambda header: header.update(x="y"))),
    "unknown dtype": (PatchDamaged, with_header(lambda header: first(header).update(dtype="F8_E9"))),
    "negative shape": (PatchDamaged, with_header(lambda header: first(header).update(shape=[-1, -8]))),
    "shape of another size": (PatchDamaged, with_header(lambda header: first(header)["shape"].append(2))),
    "huge shape": (PatchDamaged, with_header(lambda header: first(header).update(shape=[2**62, 2**62]))),
    "fractional offset": (PatchDamaged, with_header(lambda header: first(header).update(data_offsets=[0, 1.5]))),
    "overlap": (PatchDamaged, with_header(lambda header: header.update(x=dict(first(header))))),
    "hole": (PatchDamaged, with_header(lambda header: header.pop(next(n for n in header if n != "__metadata__")))),
    "bit of a tensor": (PatchDamaged, flip(-3)),
    "bit of another tensor": (PatchDamaged, flip(-4000)),
    "sha256 of another": (PatchDamaged, with_metadata(sha256="0" * 64)),
    "no sha256": (PatchDamaged, with_header(lambda header: header["__metadata__"].pop("pave.sha256"))),
    "config changed": (PatchDamaged, with_config("licence", "mit")),
    "config has an unknown key": (PatchDamaged, with_config("colour", "red")),
    "config is not JSON": (PatchDamaged, with_metadata(config="{")),
    "config nests deeply": (PatchDamaged, with_metadata(config="[" * 100_000)),
    "no config": (PatchDamaged, with_header(lambda header: header["__metadata__"].pop("pave.config"))),
    "certificate is not JSON": (PatchDamaged, with_metadata(certificate="no")),
    "no metadata": (PatchFormatError, with_header(lambda header: header.pop("__metadata__"))),
    "no format": (PatchFormatError, with_header(lambda header: header["__metadata__"].pop("pave.format"))),
    "newer format": (PatchFormatError, with_metadata(format="2")),
    "strange format": (PatchFormatError, with_metadata(format="one")),
}
