"""Claims about shards: what a killed process leaves is whole, the index can be lost, and nothing is read before it is
asked for."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small import full_disk
from torch import Tensor

from pave.errors import DataError, FileDamaged, FileError
from pave.features import shards
from pave.features.shards import Shards
from pave.files import tensorfile

KEYS = [f"{number:03}" for number in range(60)]
unix = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed")


def record(key: str) -> tuple[dict[str, Tensor], dict[str, str], dict[str, list[str]]]:
    draw = torch.Generator().manual_seed(int(key))
    tensors = {"x": torch.randn(int(key) % 7, 5, generator=draw), "valid": torch.tensor([True, False])}
    return tensors, {"name": key}, {"warnings": [f"of {key}"]}


def fill(folder: Path, keys: Sequence[str] = KEYS) -> Shards:
    """Add the records that a folder lacks."""
    found = Shards.of(folder)
    with found.filling():
        for key in keys:
            if key not in found.entries:
                found.add(key, *record(key))
    return found


def whole(found: Shards, key: str) -> bool:
    """Whether a record is as it was added."""
    (tensors, facts), (wanted, names, known) = found.read(key), record(key)
    same = tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    return same and facts == names and found.entries[key].known == known


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.safetensors")}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CLIPS", 8)


def begun(work: Callable[[], object]) -> int:
    """A process that does some work."""
    if child := os.fork():
        return child
    try:
        work()
    finally:
        os._exit(0)


def test_records_are_in_few_files_and_equal_what_was_added(tmp_path: Path) -> None:
    fill(tmp_path)
    found = Shards.of(tmp_path)
    assert list(found.entries) == KEYS and all(whole(found, key) for key in KEYS)
    others = {file.name for file in tmp_path.iterdir()} - files(tmp_path)
    assert len(files(tmp_path)) == len(KEYS) // 8 + 1 and others == {"index"}
    found.entries["001"] = found.entries["002"]
    assert not whole(found, "001"), "the comparison can fail"


@unix
def test_what_a_killed_process_leaves_is_whole_and_another_goes_on(tmp_path: Path) -> None:
    """Killed at any instant: each time some shards are there, and none is broken. Repeated until some of the instants
    were between others, however fast the machine is."""
    draw, seen = random.Random(0), 0
    begin = time.monotonic()
    os.waitpid(begun(lambda: fill(tmp_path / "undisturbed")), 0)
    usual = time.monotonic() - begin
    for attempt in range(30):
        folder, counts = tmp_path / str(attempt), [0]
        while counts[-1] < len(KEYS) and len(counts) < 100:
            process = begun(lambda folder=folder: fill(folder))
            time.sleep(draw.random() * usual)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            found = Shards.of(folder)
            assert all(whole(found, key) for key in found.entries)
            counts.append(len(found.entries))
        assert counts == sorted(counts), counts
        fill(folder)
        assert set(Shards.of(folder).entries) == set(KEYS) and not list(folder.glob(".*"))
        seen = max(seen, len(set(counts)))
        if seen > 2:
            break
    assert seen > 2, "no process was killed between two shards"


@unix
def test_several_processes_may_fill_a_folder(tmp_path: Path) -> None:
    parts = [KEYS[:40], KEYS[20:], KEYS[::-1]]
    for process in [begun(lambda part=part: fill(tmp_path, part)) for part in parts]:
        os.waitpid(process, 0)
    found = Shards.of(tmp_path)
    assert set(found.entries) == set(KEYS) and all(whole(found, key) for key in KEYS)


@pytest.mark.parametrize("damage", ["gone", "cut", "bit", "joined", "a folder"])
def test_an_index_that_is_lost_or_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    index = fill(tmp_path).index
    content = index.read_bytes()
    middle = len(content) // 2
    index.unlink()
    if damage == "a folder":
        index.mkdir()
    elif damage != "gone":
        flipped = bytes([content[middle] ^ 1])
        joined = content.replace(b"\n", b"", 3)
        cases = {"cut": content[:middle], "bit": content[:middle] + flipped + content[middle + 1 :], "joined": joined}
        index.write_bytes(cases[damage])
    found = Shards.of(tmp_path)
    assert set(found.entries) == set(KEYS) and all(whole(found, key) for key in KEYS)
    if damage == "gone":
        assert not index.exists(), "a look writes nothing"
    found.flush()
    assert damage == "a folder" or index.read_bytes().count(b"\n") >= len(files(tmp_path))


def test_the_index_saves_opening_the_shards(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in files(tmp_path):
        with (tmp_path / name).open("r+b") as file:
            file.write(b"\0" * 16)
    found = Shards.of(tmp_path)
    assert list(found.entries) == KEYS and all(whole(found, key) for key in KEYS), "their headers are not read"
    found.index.unlink()
    assert not Shards.of(tmp_path).entries


def test_a_record_is_hashed_when_it_is_first_read(tmp_path: Path) -> None:
    found = fill(tmp_path, ["003"])
    (name,) = files(tmp_path)
    assert whole(found, "003")
    content = bytearray((tmp_path / name).read_bytes())
    place = found.entries["003"].begin + found.entries["003"].size - 8  # of the numbers
    content[place] ^= 1
    (tmp_path / name).write_bytes(content)
    assert not whole(found, "003"), "it is not hashed again"
    with pytest.raises(FileDamaged, match="sha256"):
        Shards.of(tmp_path).read("003")
    (tmp_path / name).unlink()
    with pytest.raises(FileError, match="cannot be read"):
        found.read("003")
    found.refresh()
    with pytest.raises(FileError, match="no longer has the clip"):
        found.read("003")


def test_a_large_or_old_shard_is_written_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("BYTES", "SECONDS")):
        with monkeypatch.context() as change:
            change.setattr(shards, name, 0)
            fill(tmp_path, KEYS[4 * number : 4 * number + 4])
        assert len(files(tmp_path)) == 4 * number + 4
    fill(tmp_path, KEYS[8:12])
    assert len(files(tmp_path)) == 9


def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:8])
    with full_disk(), pytest.raises(DataError, match=r"features cannot be saved.*make room"):
        fill(tmp_path)
    found = Shards.of(tmp_path)
    assert list(found.entries) == KEYS[:8] and all(whole(found, key) for key in found.entries)


def test_files_of_an_earlier_version_are_counted_and_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:8])
    tensors = {"vision": torch.zeros(2), "tokens": torch.zeros(2), "times": torch.zeros(1)}
    tensorfile.write_sealed(tmp_path / f"{'0' * 32}.safetensors", tensors, {"absent": "{}", "sides": "[]"})
    found = Shards.of(tmp_path)
    assert found.others == 1 and list(found.entries) == KEYS[:8] and len(files(tmp_path)) == 2


def test_a_folder_that_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, cause in ((tmp_path / ("a" * 300), "too long"), (tmp_path / "file", "Not a directory")):
        with pytest.raises(FileError, match=f"cannot be read .*{cause}.*use another folder"):
            Shards.of(folder)
