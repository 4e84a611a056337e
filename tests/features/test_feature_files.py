"""Claims about feature files: tokens are found again by the content of their clip, and only by that."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import join, split
from small import full_disk

from pave.data import Files, Source
from pave.encoder import load_encoder
from pave.errors import DataError, MediaError, SignalError
from pave.features.files import DTYPES, ClipEntry, FeatureFolder, FeatureKey, identity, inside, read_header, write
from pave.files import tensorfile
from pave.sidechannel import PARTS, SideTokens

KEY = FeatureKey.of(load_encoder("logmel"), "float32")


def made(seed: int, kind: str = "sequence", dtype: torch.dtype = torch.float32) -> SideTokens:
    """Three steps of 2 x 2 tokens, one of them not valid."""
    draw = torch.Generator().manual_seed(seed)
    times = torch.rand(3, generator=draw, dtype=torch.float64).sort().values
    valid = torch.ones(3, 2, 2, dtype=torch.bool)
    valid[0, 1, 1] = False
    spans = torch.stack([times - 1, times + 1], dim=-1)
    return SideTokens(torch.randn(3, 2, 2, 4, generator=draw).to(dtype), times, spans, valid, kind=kind)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files: a clip, a set, one without the stream; then one that could not be read, and one with a signal."""
    entries = [ClipEntry(path="a.mp4", size=1, media="aa"), ClipEntry(path="b.mp4", size=2, media="bb")]
    entries.append(ClipEntry(path="c.mp4", size=3, media="cc", absent="absent: no audio track"))
    write(tmp_path / "00000.safetensors", KEY, entries, {0: made(0), 1: made(1, "set")})
    entries = [ClipEntry(path="d.mp4", size=4, media="dd", why="d.mp4: is no media file")]
    entries.append(ClipEntry(path="e.mp4", size=5, media="aa", signal="ss"))
    write(tmp_path / "00001.safetensors", KEY, entries, {1: made(2)})
    return tmp_path


def equal(one: SideTokens | None, other: SideTokens) -> bool:
    return (
        one is not None
        and one.kind == other.kind
        and all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)
    )


def test_tokens_are_read_bit_for_bit_by_the_content_of_their_clip(folder: Path) -> None:
    features = FeatureFolder(folder)
    assert features.key == KEY
    assert equal(features.find("aa")[0], made(0)) and equal(features.find("bb")[0], made(1, "set"))
    assert equal(features.find("aa", "ss")[0], made(2)), "the same video with a signal is another clip"
    assert features.find("cc")[0] is None and features.find("cc")[1].absent == "absent: no audio track"
    assert not equal(features.find("aa")[0], made(1, "set")), "the comparison can fail"


@pytest.mark.parametrize(
    ("clip", "cause"),
    [("dd", r"00001.*could not be encoded: d\.mp4: is no media file"), ("ee", "not one of the 5 encoded")],
)
def test_a_clip_without_features_says_why(folder: Path, clip: str, cause: str) -> None:
    with pytest.raises(SignalError, match=cause):
        FeatureFolder(folder).find(clip)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_are_stored_in_any_dtype_and_read_in_float32(tmp_path: Path, dtype: str) -> None:
    key, tokens = KEY.model_copy(update={"dtype": dtype}), made(0, dtype=DTYPES[dtype])
    write(tmp_path / "0.safetensors", key, [ClipEntry(path="a", size=1, media="aa")], {0: tokens})
    found, _ = FeatureFolder(tmp_path).find("aa")
    assert found is not None and found.x.dtype == torch.float32 and torch.equal(found.x, tokens.x.float())
    (held,) = (tensor for name, tensor in tensorfile.read(tmp_path / "0.safetensors")[0].items() if name.endswith("x"))
    assert held.dtype == DTYPES[dtype]


def test_equal_content_is_an_equal_file(tmp_path: Path) -> None:
    for name in "01":
        write(tmp_path / name, KEY, [ClipEntry(path="a", size=1, media="aa")], {0: made(0)})
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_the_key_has_the_encoder_and_the_licence_of_the_features() -> None:
    ears = load_encoder("imagebind-audio")
    theirs = FeatureKey.of(ears, "bfloat16", published=True)
    assert not theirs.commercial and theirs.licence == ears.spec.licence and theirs.weights == ""
    assert KEY.commercial and KEY.preprocessing == load_encoder("logmel").spec.preprocessing
    assert "published features" in str(theirs) and theirs.preprocessing[:12] in str(theirs)


def test_files_of_two_keys_do_not_share_a_folder(folder: Path) -> None:
    other = FeatureKey.of(load_encoder("logmel", bands=32), "float32")
    write(folder / "00002.safetensors", other, [ClipEntry(path="f", size=1, media="ff")], {0: made(3)})
    with pytest.raises(DataError, match=f"{KEY.preprocessing[:12]}.*{other.preprocessing[:12]}.*separate folders"):
        FeatureFolder(folder)


def test_a_folder_without_feature_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no feature file"):
        FeatureFolder(tmp_path)


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def retold(change: Callable[[dict[str, str]], object]) -> Callable[[bytes], bytes]:
    """Another header with a correct sha256: made on purpose."""

    def damaged(data: bytes) -> bytes:
        header, body = split(data)
        facts = header["__metadata__"]
        facts.pop("sha256")
        change(facts)
        facts["sha256"] = tensorfile.digest(facts, {})
        return join(header, body)

    return damaged


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is not a safetensors file"),
    "cut": (lambda data: data[:-1], "cut short"),
    "text": (lambda data: b"not a file at all, but some words of a person", "is not a safetensors file"),
    "a word of the header": (lambda data: data.replace(b"a.mp4", b"x.mp4", 1), "header is damaged"),
    "another file": (
        lambda data: join({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
        "is not a feature file",
    ),
    "a newer format": (retold(lambda facts: facts.update({"pave.features": "2"})), "format 2, this PAVE reads 1"),
    "no contents": (retold(lambda facts: facts.pop("contents")), "contents is not JSON"),
    "a list": (retold(lambda facts: facts.update(contents="[]")), "contents is not a JSON object"),
    "no clips": (retold(lambda facts: facts.update(contents="{}")), "clips: missing"),
    "a strange clip": (retold(lambda facts: facts.update(contents='{"clips": [1]}')), r"clips\.0=1"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_is_refused_with_its_name_and_a_remedy(folder: Path, kind: str) -> None:
    damage, cause = BROKEN[kind]
    path = folder / "00000.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"00000\.safetensors: .*{cause}.*(delete it|move it out)"):
        FeatureFolder(folder)


def test_a_flipped_bit_of_a_token_is_found_when_it_is_read(folder: Path) -> None:
    path = folder / "00000.safetensors"
    header, body = split(path.read_bytes())
    begin = len(path.read_bytes()) - len(body) + header["0.x"]["data_offsets"][0]
    path.write_bytes(flip(path.read_bytes(), begin))
    with pytest.raises(DataError, match=r"tokens of a\.mp4 are damaged; delete it"):
        FeatureFolder(folder).find("aa")
    assert equal(FeatureFolder(folder).find("bb")[0], made(1, "set"))


def test_a_full_disk_leaves_the_old_file(folder: Path) -> None:
    path = folder / "00000.safetensors"
    before = path.read_bytes()
    with full_disk(), pytest.raises(DataError, match=r"cannot be saved there.*make room"):
        write(path, KEY, [ClipEntry(path="z", size=1, media="zz")], {0: made(4)})
    assert path.read_bytes() == before and len(list(folder.iterdir())) == 2


def test_a_file_that_would_be_too_large_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorfile, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"1 clips have .* bytes.*--shard"):
        write(tmp_path / "0", KEY, [ClipEntry(path="a", size=1)], {0: made(0)})
    assert not list(tmp_path.iterdir())


def test_a_clip_is_identified_by_the_content_of_its_files_and_not_by_their_names(tmp_path: Path) -> None:
    for name, content in (
        ("a.mp4", "film"),
        ("b.mp4", "film"),
        ("c.mp4", "other"),
        ("1.npy", "rows"),
        ("2.npy", "more"),
    ):
        (tmp_path / name).write_text(content)
    scan = tmp_path / "scan"
    scan.mkdir()
    (scan / "depth").write_text("metres")

    def named(video: str, *signals: tuple[str, Files]) -> tuple[str, str]:
        return identity(Source(tmp_path / video, signals), "imu")

    one, two = str(tmp_path / "1.npy"), str(tmp_path / "2.npy")
    assert named("a.mp4") == named("b.mp4") == named("a.mp4", ("depth", one)) == named("a.mp4", ("imu", None))
    assert named("a.mp4") != named("c.mp4") and named("a.mp4")[1] == ""
    several = [(one,), (one, two), (two, one), (one, None, two)]
    assert len({named("a.mp4", ("imu", each)) for each in (one, two, str(scan), *several[1:])}) == 6
    before = named("a.mp4", ("imu", str(scan)))
    (scan / "depth").rename(scan / "colour")
    assert named("a.mp4", ("imu", str(scan))) != before
    with pytest.raises(MediaError, match=r"gone\.mp4: cannot be read \(No such file"):
        named("gone.mp4")


def test_a_folder_that_is_no_scan_is_refused_before_all_of_it_is_looked_through(tmp_path: Path) -> None:
    (tmp_path / "color").mkdir()
    for name in ("color/1.png", "0.png"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "again").symlink_to(tmp_path)
    assert inside(tmp_path, 5) == [tmp_path / "0.png", tmp_path / "color" / "1.png"]
    with pytest.raises(MediaError, match="has more than 4 files and folders; give one file"):
        inside(tmp_path, 4)


def test_a_header_is_read_without_tokens(folder: Path) -> None:
    held = read_header(folder / "00001.safetensors")
    assert held.key == KEY and [entry.path for entry in held.clips] == ["d.mp4", "e.mp4"]
    (folder / "00001.safetensors").write_bytes((folder / "00001.safetensors").read_bytes()[:-1] + b"x")
    assert read_header(folder / "00001.safetensors") == held
