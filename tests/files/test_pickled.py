"""The process that opens pickles: limits of time and memory, plain tensors only, no network and no subprocesses."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import full_disk

from pave.errors import FileDamaged, FileError
from pave.files import pickled

# the process that opens pickles


@pytest.mark.parametrize(
    ("limit", "value", "cause"),
    [("SECONDS", 0.05, "could not be opened within 0.05 s"), ("MEMORY", 0, "(?i)allocate memory")],
)
def test_opening_a_pickle_is_limited_in_time_and_memory(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, cause: str
) -> None:
    # 32 MB: a small tensor may fit into memory that the child process has allocated before the limit is set.
    torch.save({"x": torch.zeros(8 << 20)}, tmp_path / "x.bin")
    monkeypatch.setattr(pickled, limit, value)
    with pytest.raises(FileDamaged, match=cause):
        pickled.read(tmp_path / "x.bin")
    assert not list(scratch.iterdir())


def test_a_full_disk_is_not_blamed_on_the_file(tmp_path: Path, scratch: Path) -> None:
    torch.save({"x": torch.zeros(1 << 18)}, tmp_path / "x.bin")
    with full_disk(1 << 18), pytest.raises(FileError, match=r"its tensors cannot be written .*; free space") as raised:
        pickled.read(tmp_path / "x.bin")
    assert type(raised.value) is FileError and not list(scratch.iterdir())


def test_python_code_in_the_child_has_no_network_and_no_subprocesses() -> None:
    """`weights_only=True` runs no code of the file; this is the second barrier."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        deeds = (f"socket.create_connection({server.getsockname()})", "subprocess.run([sys.executable, '-V'])")
        tries = "".join(
            f"try: {deed}; print('done')\nexcept PermissionError as error: print(error)\n" for deed in deeds
        )
        outs = []
        for fence in ("", "from pave.files.pickled import _confine; _confine(1 << 33, 60)\n"):
            code = f"import socket, subprocess, sys\n{fence}{tries}"
            outs.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert outs[0].count("done") == 2 and "forbidden" not in outs[0]
    assert "done" not in outs[1] and outs[1].count("is forbidden here") == 2


ODD: dict[str, Any] = {
    "no names": [torch.zeros(2)],
    "number": {"x": 1},
    "name that is a number": {1: torch.zeros(2)},
    "sparse": {"x": torch.zeros(2, 2).to_sparse()},
    "complex": {"x": torch.zeros(2, dtype=torch.complex64)},
    "without values": {"x": torch.zeros(2, device="meta")},
    "more than there is": {"x": torch.zeros(1).expand(10**11)},
    "often the same": {f"{i}": storage for storage in [torch.zeros(20)] for i in range(10)},
}


@pytest.mark.parametrize("kind", ODD)
def test_only_plain_tensors_by_name_are_returned(kind: str) -> None:
    assert pickled._flaw(ODD[kind], 100)
    assert not pickled._flaw({"x": torch.zeros(20), "y": torch.zeros(5, dtype=torch.bfloat16)}, 100)
    assert not pickled._flaw(dict.fromkeys("ab", torch.zeros(20)), 100), "a tensor in two places"


def test_one_part_of_a_file_is_read_with_the_values_beside_it(tmp_path: Path) -> None:
    beside = {"cfg": {"layers": 2, "act": "gelu", "fine": True}, "epoch": 3, "optimizer": torch.zeros(9), 4: 5}
    torch.save({**beside, "model": {"x": torch.ones(2)}}, tmp_path / "x.pt")
    found, values = pickled.read_part(tmp_path / "x.pt", "model")
    assert found.keys() == {"x"} and torch.equal(found["x"], torch.ones(2))
    assert values == {"cfg": beside["cfg"], "epoch": 3, "optimizer": "Tensor", "4": 5}
