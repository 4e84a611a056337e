"""The fingerprint of a large base is computed once, and again for weights that are not those of its files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import make_tokenizer, write_base

from pave.base import Host
from pave.files import remembered
from pave.loading.base import load_base

FALSE = "f" * 64  # a hash that nothing has: whoever answers it has not hashed


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Host]:
    monkeypatch.setenv("PAVE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remembered, "LEAST", 1)
    folder = write_base(tmp_path / "base", make_tokenizer())
    return lambda: load_base(folder)


@pytest.fixture
def note(load: Callable[[], Host], tmp_path: Path) -> Path:
    """The file of hashes, in which that of the base is false."""
    file = tmp_path / "home/hashes.json"
    true = load().fingerprint()
    assert [*json.loads(file.read_text()).values()] == [true] and true != FALSE
    file.write_text(file.read_text().replace(true, FALSE))
    return file


def test_the_hash_of_unchanged_weights_is_remembered(load: Callable[[], Host], note: Path) -> None:
    assert load().fingerprint() == FALSE
    host = load()
    with torch.device("meta"):  # as training looks for errors before any clip is read
        assert host.fingerprint() == FALSE


def change_in_place(host: Host) -> None:
    with torch.no_grad():
        host.language_model.get_input_embeddings().weight[-1, -1] += 1  # pyright: ignore


def replace(host: Host) -> None:
    for parameter in host.language_model.parameters():
        parameter.data = parameter.data.clone()


def change_unseen(host: Host) -> None:
    for parameter in host.language_model.parameters():
        parameter.data.mul_(1.01)  # torch counts no change of `data`


@pytest.mark.parametrize("change", [change_in_place, replace, change_unseen])
def test_changed_weights_are_hashed(load: Callable[[], Host], note: Path, change: Callable[[Host], None]) -> None:
    host = load()
    change(host)
    before = note.read_text()
    assert host.fingerprint() != FALSE and (note.read_text() == before or change is change_unseen)


@pytest.mark.parametrize("spoil", ["touched", "rewritten", "damaged", "a list", "a number", "a folder", "gone"])
def test_other_files_and_bad_notes_are_hashed(load: Callable[[], Host], note: Path, tmp_path: Path, spoil: str) -> None:
    weights = tmp_path / "base/model.safetensors"
    match spoil:
        case "touched":
            os.utime(weights, (1, 1))
        case "rewritten":
            weights.write_bytes(weights.read_bytes())
        case "damaged":
            note.write_text(note.read_text()[:-9])
        case "a list":
            note.write_text("[1]")
        case "a number":
            note.write_text(note.read_text().replace(f'"{FALSE}"', "7"))
        case "a folder":
            note.unlink()
            note.mkdir()
        case _:
            note.unlink()
    assert load().fingerprint() != FALSE


def test_few_weights_are_not_remembered(
    load: Callable[[], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "LEAST", 1 << 28)
    assert load().fingerprint() and not (tmp_path / "home").exists()


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAVE_HOME", str(tmp_path))
    for number in range(remembered.MOST + 3):
        remembered.remember(f"{number}", "x")
    assert remembered.recall("2") is None and remembered.recall("3") == "x" and remembered.recall("") is None
