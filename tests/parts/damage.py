"""Kinds of damage to a patch file: the changed bytes, and the expected error.

`DAMAGE` holds accidental damage, and malicious files (`signed`), whose sha256 matches their content.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pave.errors import PatchDamaged, PatchError, PatchFormatError, PatchMismatch
from pave.files import tensorfile


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


def with_entry(**values: Any) -> Callable[[bytes], bytes]:
    """Another header entry for the first tensor."""
    return with_header(lambda header: first(header).update(values))


def with_sides(shape: list[int]) -> Callable[[bytes], bytes]:
    """A further tensor of zero bytes."""
    return with_header(lambda header: header.update(x={"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}))


def resigned(change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Callable[[bytes], bytes]:
    """Changed content with a valid sha256: `change` gets config and tensors."""

    def damaged(data: bytes) -> bytes:
        metadata, tensors = split(data)[0]["__metadata__"], load(data)
        config = json.loads(metadata["pave.config"])
        change(config, tensors)
        metadata["pave.config"] = json.dumps(config)
        metadata["pave.sha256"] = tensorfile.digest(metadata["pave.config"], tensors)
        return save(tensors, metadata)

    return damaged


def with_value(value: float, name: str = "") -> Callable[[bytes], bytes]:
    return resigned(lambda config, tensors: tensors[name or a_half(tensors)].view(-1)[:1].fill_(value))


def with_tensor(change: Callable[[Tensor], Tensor]) -> Callable[[bytes], bytes]:
    """A change to one half of a LoRA pair."""

    def replaced(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[a_half(tensors)] = change(tensors[a_half(tensors)]).contiguous()

    return resigned(replaced)


def with_part(part: str, **values: Any) -> Callable[[bytes], bytes]:
    """A config whose `fusion`, `lora` or `base` does not match the tensors."""
    return resigned(lambda config, tensors: config[part].update(values))


def with_codes(codes: Tensor, scales: Tensor) -> Callable[[bytes], bytes]:
    def coded(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        name = a_half(tensors)
        tensors[name], tensors[f"{name}.scales"] = codes, scales

    return resigned(coded)


def a_half(tensors: dict[str, Tensor]) -> str:
    return min(name for name in tensors if name.startswith("lora.") and name.endswith(".A"))


def flip(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def rename(config: dict[str, Any], sense: str) -> None:
    config["senses"][sense] = config["senses"].pop("audio")


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


ONE = torch.ones(1, 1)

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
    "config nests deeply": (PatchFormatError, with_metadata(config="[" * 100_000)),
    "config nests 200 deep": (PatchFormatError, with_config("training", {"a": nested(200)})),
    "config nests 17 deep": (PatchFormatError, with_config("training", nested(17))),
    "config has 100,000 values": (PatchFormatError, with_config("training", {"a": [1] * 100_000})),
    "config has a number of 5,000 digits": (PatchDamaged, with_metadata(config='{"name":' + "9" * 5000 + "}")),
    "config has a number beyond floats": (PatchDamaged, with_metadata(config='{"name":1e999}')),
    "config has a key twice": (PatchDamaged, with_metadata(config='{"name":"a","name":"b"}')),
    "certificate nests deeply": (PatchDamaged, with_metadata(certificate='{"a":' + "[" * 40 + "]" * 40 + "}")),
    "name forges lines": (PatchDamaged, with_config("name", "x\n  base match: exact")),
    "name of 97 characters": (PatchDamaged, with_config("name", "x" * 97)),
    "prompt without the video": (PatchDamaged, with_config("prompt", "{question}")),
    "prompt with two videos": (PatchDamaged, with_config("prompt", "{video}{video}{question}")),
    "training nests": (PatchDamaged, with_config("training", nested(9))),
    "training is a list": (PatchDamaged, with_config("training", [1])),
    "description of 5,000 characters": (PatchFormatError, with_config("description", "x" * 5000)),
    "1,000 senses": (PatchDamaged, with_config("senses", {f"s{i}": {} for i in range(1000)})),
    "no config": (PatchDamaged, with_header(lambda header: header["__metadata__"].pop("pave.config"))),
    "certificate is not JSON": (PatchDamaged, with_metadata(certificate="no")),
    "no metadata": (PatchFormatError, with_header(lambda header: header.pop("__metadata__"))),
    "no format": (PatchFormatError, with_header(lambda header: header["__metadata__"].pop("pave.format"))),
    "newer format": (PatchFormatError, with_metadata(format="2")),
    "strange format": (PatchFormatError, with_metadata(format="one")),
    "all zero": (PatchDamaged, lambda data: bytes(len(data))),
    "tensors all zero": (PatchDamaged, lambda data: data[: -len(split(data)[1])] + bytes(len(split(data)[1]))),
    "header of no bytes": (PatchDamaged, lambda data: bytes(8) + data[8:]),
    "header longer than the file": (PatchDamaged, lambda data: len(data).to_bytes(8, "little") + data[8:]),
    "header of 2^64 bytes": (PatchDamaged, lambda data: b"\xff" * 8 + data[8:]),
    "length in big-endian": (PatchDamaged, lambda data: data[7::-1] + data[8:]),
    "header is null": (PatchDamaged, lambda data: join("null", b"")),
    "header of spaces": (PatchDamaged, lambda data: join(" " * 64, b"")),
    "byte order mark": (PatchDamaged, lambda data: join("\ufeff{}", b"")),
    "two headers": (PatchDamaged, lambda data: join("{}{}", b"")),
    "number of 10,000 digits": (PatchDamaged, lambda data: join('{"a":' + "9" * 10_000 + "}", b"")),
    "dtype is a number": (PatchDamaged, with_entry(dtype=32)),
    "dtype is a list": (PatchDamaged, with_entry(dtype=["F32"])),
    "dtype of the same size": (PatchDamaged, with_entry(dtype="I32")),
    "no dtype": (PatchDamaged, with_header(lambda header: first(header).pop("dtype"))),
    "a key too many": (PatchDamaged, with_entry(colour="red")),
    "shape is a number": (PatchDamaged, with_entry(shape=8)),
    "shape is a text": (PatchDamaged, with_entry(shape="8")),
    "shape holds true": (PatchDamaged, with_entry(shape=[True])),
    "shape of 100,000 sides": (PatchDamaged, with_header(lambda header: first(header)["shape"].extend([1] * 100_000))),
    "zero bytes of a huge shape": (PatchDamaged, with_sides([0, 2**62, 2**62])),
    "zero bytes of a shape beyond 64 bits": (PatchDamaged, with_sides([0, 2**70])),
    "offsets reversed": (PatchDamaged, with_header(lambda header: first(header)["data_offsets"].reverse())),
    "offsets beyond the file": (PatchDamaged, with_entry(data_offsets=[2**63, 2**63 + 4])),
    "offsets are a text": (PatchDamaged, with_entry(data_offsets="04")),
    "three offsets": (PatchDamaged, with_entry(data_offsets=[0, 4, 8])),
    "half a character in a name": (PatchDamaged, with_header(lambda header: header.update({"\ud800": first(header)}))),
    "half a character in the config": (PatchDamaged, with_config("description", "\ud800")),
    "half a character in the metadata": (PatchDamaged, with_metadata(config='{"name": "\ud800"}')),
    "tensor under another name": (PatchDamaged, with_header(lambda header: header.update(x=header.pop(max(header))))),
    "certificate is a list": (PatchDamaged, with_metadata(certificate="[]")),
    "signed, NaN": (PatchDamaged, with_value(math.nan)),
    "signed, infinite": (PatchDamaged, with_value(-math.inf)),
    "signed, 1e38": (PatchDamaged, with_value(1e38)),
    "signed, whole numbers": (PatchDamaged, with_tensor(lambda tensor: tensor.int())),
    "signed, transposed": (PatchMismatch, with_tensor(lambda tensor: tensor.T)),
    "signed, flat": (PatchMismatch, with_tensor(lambda tensor: tensor.flatten())),
    "signed, of another rank": (PatchMismatch, with_tensor(lambda tensor: tensor[1:])),
    "signed, empty": (PatchMismatch, with_tensor(lambda tensor: tensor[:0])),
    "signed, half a pair": (PatchMismatch, resigned(lambda config, tensors: tensors.pop(a_half(tensors)))),
    "signed, no tensors": (PatchMismatch, resigned(lambda config, tensors: tensors.clear())),
    "signed, one more": (PatchMismatch, resigned(lambda config, tensors: tensors.update(x=torch.zeros(2)))),
    "signed, LoRA missing from the config": (PatchMismatch, resigned(lambda config, tensors: config.pop("lora"))),
    "signed, sense missing from the config": (
        PatchMismatch,
        resigned(lambda config, tensors: config["senses"].clear()),
    ),
    "signed, codes without scales": (PatchDamaged, with_tensor(lambda tensor: tensor.char())),
    "signed, scales without codes": (PatchDamaged, resigned(lambda config, tensors: tensors.update({"x.scales": ONE}))),
    "signed, scales of another shape": (PatchDamaged, with_codes(torch.ones(4, 48).char(), torch.ones(3, 5))),
    "signed, scale not finite": (PatchDamaged, with_codes(torch.ones(4, 48).char(), torch.full((4, 1), math.inf))),
    "signed, no scale at all": (PatchDamaged, with_codes(torch.ones(4, 48).char(), torch.ones(4, 0))),
    "signed, a billion layers": (PatchDamaged, with_part("fusion", kind="official", layers=10**9)),
    "signed, a wide fusion": (PatchMismatch, with_part("fusion", width=2**15)),
    "signed, a fusion beyond the limit": (PatchDamaged, with_part("fusion", width=2**20)),
    "signed, lora_alpha 1e38": (PatchDamaged, with_part("lora", lora_alpha=1e38)),
    "signed, lora_alpha 1e-30": (PatchDamaged, with_part("lora", lora_alpha=1e-30)),
    "signed, no frames": (PatchDamaged, with_part("base", frames=0)),
    "signed, a billion frames": (PatchDamaged, with_part("base", frames=10**9)),
    "signed, a fingerprint that is none": (PatchDamaged, with_part("base", fingerprint="\x1b[31m")),
    "signed, a target that is a pattern": (PatchDamaged, with_part("lora", target_modules=["(a|aa)+$"])),
    "signed, width too large for memory": (PatchDamaged, with_part("fusion", width=2**62)),
    "signed, heads that do not divide": (PatchDamaged, with_part("fusion", heads=7)),
    "signed, another kind": (PatchMismatch, with_part("fusion", kind="official")),
    "signed, rank 0": (PatchDamaged, with_part("lora", r=0)),
    "signed, base of negative size": (PatchDamaged, with_part("base", dim=-4)),
    "signed, base beyond 64 bits": (PatchFormatError, with_part("base", dim=2**70)),
    "signed, sense that is a path": (PatchDamaged, resigned(lambda config, tensors: rename(config, "../up"))),
    "signed, sense that is a method": (PatchDamaged, resigned(lambda config, tensors: rename(config, "__class__"))),
}
