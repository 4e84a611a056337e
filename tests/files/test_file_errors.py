"""Files that are damaged, or cannot be read or written: one neutral error in pave.files, and in every wing the kind of
error documented there, with a remedy for that kind of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import full_disk

from pave.encoder import load_encoder
from pave.errors import (
    DataError,
    EncoderError,
    FileDamaged,
    FileError,
    PatchDamaged,
    PatchError,
    PaveError,
    SignalError,
    TrainingError,
)
from pave.features.files import ClipEntry, FeatureKey, read_header
from pave.features.files import write as write_features
from pave.files import json_text, pickled, tensorfile
from pave.files.atomic import replacing
from pave.hub.aliases import set_alias
from pave.media.clip import Clip
from pave.patch.file import Patch, outline, read_config
from pave.patch.official import convert
from pave.senses import languagebind
from pave.senses.weights import Release
from pave.training.checkpoint import NAME, State, read_checkpoint, write_checkpoint

UNREADABLE = Path("/proc/self/mem")  # a regular file that opens and cannot be read, not even by root
HEADER = b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}'
DAMAGE = {
    "empty": (b"", "is not a safetensors file: 0 bytes"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "is a web page"),
    "zip": (b"PK\x03\x04 and more of it", "is a zip or a PyTorch pickle"),
    "pickle": (b"\x80\x04\x95 and more of it", "is a pickle"),
    "header": ((9).to_bytes(8, "little") + b'{"a": NaN', "its header is not JSON"),
    "offsets": (len(HEADER).to_bytes(8, "little") + HEADER + bytes(8), "'x' of shape .* needs 36 bytes"),
}


@pytest.fixture
def unreadable(tmp_path: Path) -> Path:
    if not UNREADABLE.exists():
        pytest.skip("this system has no such file")
    (tmp_path / "unreadable").symlink_to(UNREADABLE)
    return tmp_path / "unreadable"


# the neutral error


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_error_of_a_damaged_file_does_not_mention_patches(tmp_path: Path, kind: str) -> None:
    data, cause = DAMAGE[kind]
    (tmp_path / "x").write_bytes(data)
    for read in (tensorfile.read, tensorfile.read_metadata):
        with pytest.raises(FileDamaged, match=rf"x: {cause}.*; ") as raised:
            read(tmp_path / "x")
        assert type(raised.value) is FileDamaged and raised.value.file == str(tmp_path / "x")
        assert not {"patch", "train"} & set(str(raised.value).replace(str(tmp_path), "").split())


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b" " * (json_text.MAX_JSON + 1)]
)
def test_the_error_of_a_damaged_text_does_not_mention_patches(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FileDamaged) as raised:
        json_text.read_json(tmp_path / "x")
    assert type(raised.value) is FileDamaged and raised.value.remedy == "download or create it again"


@pytest.mark.parametrize("read", [tensorfile.read, tensorfile.read_metadata, json_text.read_json, pickled.read])
def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, read: Callable[[Path], object]) -> None:
    for place, cause in ((tmp_path, "Is a directory"), (tmp_path / "gone", "No such file or directory")):
        with pytest.raises(FileError, match=rf"{place}: cannot be read \({cause}\); check path") as raised:
            read(place)
        assert type(raised.value) is FileError


@pytest.mark.parametrize("read", [tensorfile.read, tensorfile.read_metadata, json_text.read_json])
def test_a_file_that_fails_while_being_read_is_not_called_damaged(
    unreadable: Path, read: Callable[[Path], object]
) -> None:
    with pytest.raises(FileError, match=r"unreadable: cannot be read \(Input/output error\)") as raised:
        read(unreadable)
    assert type(raised.value) is FileError


def test_a_failed_write_is_a_neutral_error_and_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(FileError, match=r"x: cannot be written .*; free disk space") as raised:
        tensorfile.write(tmp_path / "x", {"x": torch.zeros(1000)}, {})
    assert type(raised.value) is FileError and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written"), replacing(tmp_path / "file" / "x"):
        pass


def test_an_alias_that_cannot_be_written_is_not_a_patch_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAVE_HOME", str(tmp_path / "file"))
    with pytest.raises(FileError, match=r"aliases\.json: cannot be written") as raised:
        set_alias("ears", "audio-playroom")
    assert type(raised.value) is FileError


# what users see


def resume(file: Path) -> object:
    weight = torch.nn.Parameter(torch.zeros(1))
    return read_checkpoint(file.parent, {"fusion": {"w": weight}}, torch.optim.AdamW([weight]), {})


def encode_sensor(file: Path) -> object:
    encoder = load_encoder("array", signal="imu", dim=2, rate=10.0)
    return encoder.encode(Clip().beside({"imu": file}))


PLACES: dict[str, tuple[str, Callable[[Path], object], type[PaveError], str]] = {
    "patch": ("patch.safetensors", Patch.load, PatchDamaged, "download or train it again"),
    "outline of a patch": ("patch.safetensors", outline, PatchDamaged, "download or train it again"),
    "config of a patch": ("patch.safetensors", read_config, PatchDamaged, "download or train it again"),
    "features": ("0.safetensors", read_header, DataError, "make it again with `pave encode`"),
    "checkpoint": (NAME, resume, TrainingError, "start without --resume"),
    "weights": (
        "model.safetensors",
        lambda file: languagebind.read(Release(given=str(file), remedy=languagebind.REMEDY), (16, 16), temporal=True),
        EncoderError,
        "download or create it again",
    ),
    "sensor": ("a.safetensors", encode_sensor, SignalError, "write the sensor's rows again"),
}


@pytest.mark.parametrize("place", PLACES)
def test_damage_has_the_kind_and_the_remedy_of_the_wing(tmp_path: Path, place: str) -> None:
    name, read, kind, remedy = PLACES[place]
    (tmp_path / name).write_bytes(DAMAGE["offsets"][0])
    with pytest.raises(kind, match=rf"{name}: 'x' of shape .* needs 36 bytes.*; .*{remedy}$") as raised:
        read(tmp_path / name)
    assert type(raised.value) is kind


@pytest.mark.parametrize("place", PLACES)
def test_only_patch_errors_say_how_to_convert_a_zip_to_a_patch(tmp_path: Path, place: str) -> None:
    name, read, kind, _ = PLACES[place]
    (tmp_path / name).write_bytes(DAMAGE["zip"][0])
    with pytest.raises(kind, match=rf"{name}: is a zip or a PyTorch pickle") as raised:
        read(tmp_path / name)
    assert type(raised.value) is kind
    assert ("pave patch convert" in str(raised.value)) is issubclass(kind, PatchError)


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_cannot_be_read_has_the_kind_of_the_wing(unreadable: Path, place: str) -> None:
    name, read, kind, _ = PLACES[place]
    kind = PatchError if kind is PatchDamaged else kind
    file = unreadable.rename(unreadable.with_name(name))
    with pytest.raises(kind, match=rf"{name}: cannot be read \(Input/output error\); ") as raised:
        read(file)
    assert type(raised.value) is kind


def test_a_config_of_peft_that_is_a_folder_is_refused_as_a_patch(tmp_path: Path, unreadable: Path) -> None:
    (tmp_path / "non_lora_trainables.bin").touch()
    (tmp_path / "config.json").touch()
    unreadable.rename(tmp_path / "adapter_config.json")
    with pytest.raises(PatchError, match=r"adapter_config\.json: cannot be read") as raised:
        convert(tmp_path, "audio", "logmel")
    assert type(raised.value) is PatchError


def save_features(folder: Path) -> Any:
    entries = [ClipEntry(path=f"{number}.mp4", size=1) for number in range(50)]
    write_features(folder / "0.safetensors", FeatureKey.of(load_encoder("logmel"), "float32"), entries, {})


def save_checkpoint(folder: Path) -> Any:
    weight = torch.nn.Parameter(torch.zeros(1000))
    write_checkpoint(folder, State(4, [], {0: 4}), {"fusion": {"w": weight}}, torch.optim.AdamW([weight]), {})


@pytest.mark.parametrize(
    ("save", "kind"),
    [(save_features, DataError), (save_checkpoint, TrainingError)],
)
def test_a_file_that_cannot_be_written_has_the_kind_of_the_wing(
    tmp_path: Path, save: Callable[[Path], Any], kind: type[PaveError]
) -> None:
    with full_disk(), pytest.raises(kind, match=r"safetensors: cannot be written .*make room") as raised:
        save(tmp_path)
    assert type(raised.value) is kind and not list(tmp_path.iterdir())
