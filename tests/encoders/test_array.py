"""Claims about sensors: rows become tokens at their times, from arrays and files; unreadable input is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from families import make_base
from patched import awaken, make_config
from small import write_line

from pave.data import Source
from pave.encoder import load_encoder
from pave.errors import DataError, EncoderError, MediaError, SignalError
from pave.features.cache import FeatureCache
from pave.features.files import identity
from pave.files.tensorfile import write
from pave.media.clip import Clip, Signal
from pave.model.patched import PatchedModel
from pave.readers.questions import read_data

ROWS = torch.arange(40, dtype=torch.float32).reshape(20, 2)
HERE = {"signal": "imu", "dim": 2, "rate": 10.0}


def encode(value, **options):
    tokens = load_encoder("array", **{**HERE, **options}).encode(Clip().beside({"imu": value}))
    assert tokens is not None
    return tokens


def test_rows_are_tokens_at_the_middle_of_their_tenth() -> None:
    tokens = encode(ROWS)
    assert torch.equal(tokens.x[:, 0, 0], ROWS)
    assert torch.allclose(tokens.times, (torch.arange(20, dtype=torch.float64) + 0.5) / 10)
    assert torch.allclose(tokens.spans[3], torch.tensor([0.3, 0.4], dtype=torch.float64))


def test_stacked_rows_are_one_token_and_the_remainder_is_dropped() -> None:
    tokens = encode(ROWS, stack=3)
    assert tokens.x.shape == (6, 1, 1, 6) and torch.equal(tokens.x[1, 0, 0], ROWS[3:6].flatten())
    assert torch.allclose(tokens.times[1], torch.tensor(0.45, dtype=torch.float64))
    assert load_encoder("array", **HERE, stack=3).spec.dim == 6


def test_too_few_rows_for_a_token_are_padded_with_zeros() -> None:
    tokens = encode(ROWS[:2], stack=4)
    assert tokens.x.flatten().tolist() == [0, 1, 2, 3, 0, 0, 0, 0]
    assert tokens.spans[0].tolist() == pytest.approx([0.0, 0.2])


def test_a_signal_keeps_its_own_times() -> None:
    times = torch.linspace(3, 9, 20, dtype=torch.float64) ** 2
    assert torch.equal(encode((ROWS, times)).times, times)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int16", "uint8"])
def test_files_equal_arrays(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", ROWS.numpy().astype(dtype))
    assert torch.equal(encode(tmp_path / "a.npy").x, encode(ROWS).x)


def test_safetensors_can_contain_times(tmp_path: Path) -> None:
    times = torch.linspace(1, 2, 20, dtype=torch.float64)
    write(tmp_path / "a.safetensors", {"values": ROWS, "times": times}, {})
    write(tmp_path / "b.safetensors", {"values": ROWS}, {})
    assert torch.equal(encode(str(tmp_path / "a.safetensors")).times, times)
    assert torch.equal(encode(str(tmp_path / "b.safetensors")).times, encode(ROWS).times)


def test_the_encoding_of_a_clip_without_the_signal_is_none() -> None:
    encoder = load_encoder("array", **HERE)
    assert encoder.encode(Clip()) is None and encoder.encode(Clip().beside({"imu": None})) is None
    assert encoder.encode(Clip().beside({"imu": ROWS[:0]})) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (ROWS[:, :1], r"shape \(20, 1\).*pass \(τ 2\)"),
        (ROWS.flatten(), r"shape \(40,\)"),
        (ROWS.to(torch.complex64), "complex64"),
        (ROWS.where(ROWS != 6, torch.nan), "1 of 20 rows have a value that is not finite"),
        (["a.npy", "b.npy"], r"imu: \['a.npy', 'b.npy'\] is no array of numbers"),
        ([[1, 2], [3]], "is no array of numbers; pass rows of equal length"),
    ],
)
def test_invalid_rows_are_refused(value, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        encode(value)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00\x08\x00{}\n", b"PK\x03\x04junk"])
@pytest.mark.parametrize("name", ["a.npy", "a.safetensors"])
def test_files_without_an_array_are_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SignalError, match=name):
        encode(tmp_path / name)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SignalError, match="holds Python objects, not plain numbers"):
        encode(tmp_path / "a.npy")


def test_files_of_other_tensors_and_broken_times_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"rows": ROWS}, {})
    with pytest.raises(SignalError, match=r"holds \['rows'\]; name the rows `values`"):
        encode(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors", {"values": ROWS, "times": torch.arange(20.0).flip(0)}, {})
    with pytest.raises(SignalError, match="increasing order"):
        encode(tmp_path / "b.safetensors")
    with pytest.raises(SignalError, match=r"gone\.npy"):
        encode(tmp_path / "gone.npy")


@pytest.mark.parametrize(
    "options",
    [{"dim": 0}, {"rate": 0}, {"rate": float("inf")}, {"stack": 0}, {"signal": ""}, {"signal": "audio"}, {"rate": "x"}],
)
def test_invalid_options_are_refused(options: dict) -> None:
    with pytest.raises(EncoderError, match=next(iter(options))):
        load_encoder("array", **{**HERE, **options})


def test_missing_options_are_named() -> None:
    with pytest.raises(EncoderError, match="needs the options dim, rate"):
        load_encoder("array", signal="imu")


# From the line of a data file to the features of a clip


def test_lines_name_signals_relative_to_their_file(tmp_path: Path) -> None:
    signals = {"imu": "imu/1.npy", "views": ["a.mp4", None, "/b.mp4"], "depth": None}
    (tmp_path / "a.jsonl").write_text(write_line("1.mp4", "?", "x", signals=signals))
    (example,) = read_data(tmp_path / "a.jsonl")
    found = dict(example.source.signals)
    assert found == {"imu": f"{tmp_path}/imu/1.npy", "views": (f"{tmp_path}/a.mp4", None, "/b.mp4"), "depth": None}
    assert "signals" not in example.facts and len(example.source.files) == 4


@pytest.mark.parametrize("signals", [["a"], {"imu": 3}, {"imu": ["a", 1]}, {"imu": ""}, {"imu": "a\0b"}])
def test_lines_with_invalid_signals_are_refused(tmp_path: Path, signals) -> None:
    (tmp_path / "a.jsonl").write_text(write_line("1.mp4", "?", "x", signals=signals))
    with pytest.raises(DataError, match="line 1"):
        read_data(tmp_path / "a.jsonl")


def test_cached_features_follow_the_signal_file(tokenizer, tmp_path: Path) -> None:
    model, encoder = PatchedModel(make_base(tokenizer)), load_encoder("array", **HERE)
    write_clip(tmp_path / "1.mp4", counting_frames(8), fps=8)
    np.save(tmp_path / "1.npy", ROWS.numpy())
    source = Source(tmp_path / "1.mp4", (("imu", str(tmp_path / "1.npy")),))
    bare, gone = Source(tmp_path / "1.mp4"), Source(tmp_path / "1.mp4", (("imu", str(tmp_path / "gone.npy")),))
    store = FeatureCache(model, [encoder], tmp_path / "cache")
    for _ in range(2):
        found = store.read([source, bare, gone])
        assert set(found) == {source, bare} and "gone.npy" in store.refused[gone]
        side = found[source].sides[encoder.spec.preprocessing]
        assert side is not None and torch.equal(side.x[:, 0, 0], ROWS)
        assert found[bare].sides[encoder.spec.preprocessing] is None
        assert found[bare].absent[encoder.spec.preprocessing] == "absent: the clip has no imu"
    np.save(tmp_path / "1.npy", ROWS.numpy() + 1)
    side = store.read([source])[source].sides[encoder.spec.preprocessing]
    assert side is not None and torch.equal(side.x[:, 0, 0], ROWS + 1)


def test_a_patch_reads_a_sensor_passed_with_a_question(tokenizer, tmp_path: Path) -> None:
    model = PatchedModel(make_base(tokenizer))
    config = make_config(model.host)
    facts = load_encoder("array", **HERE).spec.facts("time")
    model.attach("imu", config.model_copy(update={"name": "imu", "senses": {"motion": facts}}))
    awaken(model, "imu", scale=1.0)
    np.save(tmp_path / "1.npy", ROWS.numpy())
    clip = Clip.from_frames(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), times=[0.0, 0.5, 1.0, 1.5])
    with_file = model.ask(clip, "?", imu=tmp_path / "1.npy")
    assert with_file.signals["motion"] == "present: 20 steps from 0.05 s"
    assert str(model.ask(clip, "?", imu=ROWS)) == str(with_file)
    with model.patches_off():
        base = model.ask(clip, "?")
    assert str(model.ask(clip, "?")) == str(base)
    with pytest.raises(SignalError, match="no applied patch reads the signal 'gyro'"):
        model.ask(clip, "?", gyro=ROWS)


def test_the_identity_of_a_part_of_a_file_includes_the_file(tmp_path: Path) -> None:
    (tmp_path / "infos.json").write_text("{}")
    (tmp_path / "1.mp4").write_bytes(b"film")
    one, other, none = (
        Source(tmp_path / "1.mp4", (("depth", f"{tmp_path}/{name}"),))
        for name in ("infos.json#a", "infos.json#b", "gone.json#a")
    )
    assert one.files == [tmp_path / "1.mp4", tmp_path / "infos.json"]
    assert identity(one, "depth")[1] != identity(other, "depth")[1]
    with pytest.raises(MediaError, match=r"gone\.json"):
        identity(none, "depth")


@pytest.mark.parametrize("scene", ["<" * 300, "\udfff", "a/" * 3000])
def test_a_part_of_a_file_may_have_a_name_that_no_file_can_have(tmp_path: Path, scene: str) -> None:
    (tmp_path / "infos.json").write_text("{}")
    (tmp_path / "1.mp4").write_bytes(b"film")
    one, other = (Source(tmp_path / "1.mp4", (("depth", f"{tmp_path}/infos.json#{name}"),)) for name in (scene, "a"))
    assert identity(one, "depth") != identity(other, "depth") and one.files == other.files
    folder = tmp_path / "scan"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert len(identity(Source(tmp_path / "1.mp4", (("depth", str(folder)),)), "depth")[1]) == 64


def test_values_beyond_float32_are_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    rows = np.zeros((20, 2))
    rows[3] = 1e300
    np.save(tmp_path / "imu.npy", rows)
    encoder = load_encoder("array", signal="imu", dim=2, rate=10)
    for value, name in ((tmp_path / "imu.npy", r"imu \(.*imu\.npy\)"), (rows, "imu")):
        with pytest.raises(SignalError, match=rf"{name}: 1 of 20 rows have a value that is not finite in float32"):
            encoder.encode(Clip.from_frames(imu=value))
    with pytest.raises(SignalError, match=r"values \(3, 2\): 2 of 3 steps have a value or time that is not finite"):
        Signal(torch.tensor([[0, math.nan], [0, 0], [0, 0]]), torch.tensor([0.0, 1.0, math.inf]))
