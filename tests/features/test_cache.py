"""Claims about cached features: bit-identical to fresh ones, only for the same file, and never a reason to stop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clips import click, counting_frames, write_clip
from families import FRAMES, make_base
from small import full_disk
from transformers import PreTrainedTokenizerFast

from pave.data import Source
from pave.encoder import CONSENT, load_encoder
from pave.errors import DataError, EncoderError, PatchMismatch
from pave.features.cache import FeatureCache
from pave.features.files import ClipEntry, FeatureKey, identity, write
from pave.features.room import Mode
from pave.features.shards import Shards
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.patch.file import Patch
from pave.recipe import Recipe, read_recipe
from pave.sidechannel import PARTS, SideTokens
from pave.training.run import train
from pave.training.setup import Setup

MAPS = Path("/proc/self/maps")
KEY = load_encoder("logmel", bands=16, rate=5).spec.preprocessing


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Three short clips; the last has no sound track."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(3):
        sound = click(1.0, 0.2 * (i + 1)) if i < 2 else None
        write_clip(folder / f"{i}.mp4", counting_frames(8)[i:], fps=8, audio=sound)
    return [Source(folder / f"{i}.mp4") for i in range(3)]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PatchedModel:
    return PatchedModel(make_base(tokenizer))


def store(model: PatchedModel, folder: Path | None, bands: int = 16, mode: Mode = "keep") -> FeatureCache:
    return FeatureCache(model, [load_encoder("logmel", bands=bands, rate=5)], folder, mode=mode)


def equal(one: ClipFeatures, other: ClipFeatures) -> bool:
    """Down to the last bit, side channels included."""
    if one.sides.keys() != other.sides.keys() or one.absent != other.absent:
        return False
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("vision", "tokens", "times")]
    for key, side in one.sides.items():
        twin = other.sides[key]
        if side is None or twin is None:
            if side is not twin:
                return False
            continue
        if side.kind != twin.kind:
            return False
        pairs += [(getattr(side, part), getattr(twin, part)) for part in PARTS]
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def cached(folder: Path) -> set[Path]:
    return set(folder.glob("*.safetensors"))


def test_cached_features_equal_fresh_ones_bit_for_bit(model: PatchedModel, films: list[Source], tmp_path: Path) -> None:
    fresh = store(model, tmp_path).read(films)
    again = store(model, tmp_path).read(films)
    nowhere = store(model, None).read(films)
    assert list(fresh) == list(again) == films
    for film in films:
        assert equal(fresh[film], again[film]) and equal(fresh[film], nowhere[film])
    assert not equal(fresh[films[0]], fresh[films[1]]), "the comparison can fail"
    assert fresh[films[0]].vision.shape[0] == FRAMES


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux lists the files that a process maps")
def test_features_in_a_folder_are_read_when_they_are_asked_for_and_nothing_is_mapped(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    for _ in range(2):  # fresh ones, and those of another run
        found = store(model, tmp_path).read(films)
        assert found[films[0]] is not found[films[0]] and equal(found[films[0]], found[films[0]])
        assert str(tmp_path) not in MAPS.read_text()
    for file in cached(tmp_path):
        file.unlink()
    with pytest.warns(UserWarning, match=r"cannot be read .*0\.mp4 was encoded again"):
        assert equal(found[films[0]], store(model, None).read(films)[films[0]])


def test_a_cached_clip_without_sound_has_the_reason(model: PatchedModel, films: list[Source], tmp_path: Path) -> None:
    for _ in range(2):
        mute = store(model, tmp_path).read(films)[films[2]]
        assert mute.sides == {KEY: None} and "no audio track" in mute.absent[KEY]


def test_the_cache_keeps_warnings_and_tells_tracks_and_sounds_apart(model: PatchedModel, tmp_path: Path) -> None:
    two = write_clip(tmp_path / "two.mkv", counting_frames(8), 8, click(1, 0.2), more_audio=[click(1, 0.7)])
    wave = write_clip(tmp_path / "late.wav", None, audio=click(1, 0.7), audio_codec="pcm_s16le")
    sources = [
        Source(two),
        Source(two, audio_track=0),
        Source(two, audio_track=1),
        Source(two, (("audio", str(wave)),)),
    ]
    sources += [Source(two, (("audio", None),)), Source(two, video_track=0, audio_track=1)]
    fresh, again = (store(model, tmp_path / "cache").read(sources) for _ in range(2))
    assert len(Shards.of(tmp_path / "cache").entries) == 6 and all(equal(fresh[each], again[each]) for each in sources)
    sides = [again[each].sides[KEY] for each in sources]
    at = [None if side is None else round(side.times[side.x.mean((1, 2, 3)).argmax()].item(), 1) for side in sides]
    assert at[0] == at[1] != at[2] == at[3] == at[5] and at[4] is None
    assert [bool(again[each].warnings) for each in sources] == [True, False, False, False, False, False]
    assert all(fresh[each].warnings == again[each].warnings for each in sources)
    assert "2 sound tracks" in " ".join(again[sources[0]].warnings)


def test_features_do_not_depend_on_the_neighbours(model: PatchedModel, films: list[Source]) -> None:
    together = store(model, None).read(films)
    assert equal(together[films[1]], store(model, None).read(films[1:2])[films[1]])


def rewrite(film: Path, content: bytes, seconds: int = 0) -> None:
    """Replace the bytes; the modification time is the old one plus `seconds`."""
    facts = film.stat()
    film.write_bytes(content)
    os.utime(film, ns=(facts.st_atime_ns, facts.st_mtime_ns + seconds * 10**9))


def test_cached_features_are_used_until_the_file_changes(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(films[0].video.read_bytes())
    first = store(model, tmp_path / "cache").read([Source(film)])[Source(film)]
    rewrite(film, bytes(film.stat().st_size))  # same size and time: shows that the file is not opened again
    assert equal(first, store(model, tmp_path / "cache").read([Source(film)])[Source(film)])
    rewrite(film, films[1].video.read_bytes(), seconds=1)
    changed = store(model, tmp_path / "cache").read([Source(film)])[Source(film)]
    assert not equal(first, changed) and equal(changed, store(model, None).read([Source(film)])[Source(film)])


def test_another_encoder_option_or_base_is_encoded_again(
    model: PatchedModel, films: list[Source], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    store(model, tmp_path).read(films[:1])
    first = cached(tmp_path)
    wide = store(model, tmp_path, bands=8).read(films[:1])[films[0]]
    (side,) = wide.sides.values()
    assert side is not None and side.x.shape[-1] == 8 and len(cached(tmp_path) - first) == 1
    for change in ("vision_tower", "multi_modal_projector", "frames", "layer"):
        before = cached(tmp_path)
        other = PatchedModel(make_base(tokenizer))
        if change == "frames":
            other.host.frames = FRAMES - 1
        elif change == "layer":
            other.base.config.vision_feature_layer = -2
        else:
            next(getattr(other.base.model, change).parameters()).data += 0.5
        features = store(other, tmp_path).read(films[:1])[films[0]]
        assert len(cached(tmp_path) - before) == 1, change
        assert equal(features, store(other, None).read(films[:1])[films[0]])


def test_another_language_model_has_the_same_features(
    model: PatchedModel, films: list[Source], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    store(model, tmp_path).read(films[:1])
    other = PatchedModel(make_base(tokenizer))
    next(other.host.language_model.parameters()).data += 0.5
    before = cached(tmp_path)
    store(other, tmp_path).read(films[:1])
    assert cached(tmp_path) == before


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "text", "gone"])
@pytest.mark.parametrize("mode", ["keep", "none"])
def test_a_damaged_shard_is_encoded_again_at_the_next_run_or_when_it_is_read(
    model: PatchedModel, films: list[Source], tmp_path: Path, damage: str, mode: Mode
) -> None:
    fresh = store(model, None).read(films[:1])[films[0]]
    running = store(model, tmp_path, mode=mode).read(films[:1])
    (file,) = cached(tmp_path)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    file.unlink()
    if damage != "gone":
        file.write_bytes({"empty": b"", "cut": whole[:-1], "bit": bytes(flipped), "text": b"not a file"}[damage])
    if damage == "bit":  # what costs time is left for later
        with pytest.warns(UserWarning, match=r"sha256; .*0\.mp4 was encoded again"):
            assert equal(fresh, store(model, tmp_path, mode=mode).read(films[:1])[films[0]])
    else:
        assert equal(fresh, store(model, tmp_path, mode=mode).read(films[:1])[films[0]])
    assert file.read_bytes() == whole and cached(tmp_path) == {file}
    assert equal(fresh, running[films[0]]), "another run goes on with the new file"


def test_a_clip_that_changed_and_whose_features_are_damaged_ends_the_run(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(films[0].video.read_bytes())
    found = store(model, tmp_path / "cache").read([Source(film)])
    (file,) = cached(tmp_path / "cache")
    os.truncate(file, 200)
    rewrite(film, films[1].video.read_bytes(), seconds=1)
    with pytest.raises(DataError, match=r"was cut short.*film\.mp4 has changed meanwhile.*start a new run"):
        found[Source(film)]
    rewrite(film, films[0].video.read_bytes(), seconds=-1)
    film.chmod(0)
    if not os.access(film, os.R_OK):  # root may read it
        with pytest.raises(DataError, match=r"cannot be encoded again: .*film"):
            found[Source(film)]


def test_unreadable_clips_are_in_quarantine_and_the_rest_goes_on(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    text, sound, gone = tmp_path / "text.mp4", tmp_path / "sound.m4a", tmp_path / "gone.mp4"
    text.write_text("not a film")
    write_clip(sound, None, audio=click(1.0, 0.5))
    cache = store(model, tmp_path / "cache")
    found = cache.read([Source(text), films[0], Source(sound), Source(gone), films[2]])
    assert list(found) == [films[0], films[2]]
    lines = [json.loads(line) for line in (tmp_path / "cache" / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["file"]: line["why"] for line in lines}
    assert list(reasons) == [str(text), str(sound), str(gone)]
    assert {Source(Path(file)): why for file, why in reasons.items()} == cache.refused
    assert "no pictures" in reasons[str(sound)] and all(len(why) > 10 for why in reasons.values())


def test_quarantine_may_list_all_clips(model: PatchedModel, tmp_path: Path) -> None:
    assert store(model, tmp_path / "cache").read([Source(tmp_path / "gone.mp4")]) == {}
    assert "gone.mp4" in (tmp_path / "cache" / "quarantine.jsonl").read_text()


def test_a_repaired_file_leaves_quarantine(model: PatchedModel, films: list[Source], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_text("not a film")
    assert not store(model, tmp_path / "cache").read([Source(film)])
    film.write_bytes(films[0].video.read_bytes())
    assert store(model, tmp_path / "cache").read([Source(film)])
    assert (tmp_path / "cache" / "quarantine.jsonl").read_text() == ""


def test_without_a_folder_nothing_is_written(
    model: PatchedModel, films: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store(model, None).read(films[:1]) and not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_that_leaves_no_half_file(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    cache = store(model, tmp_path)
    with full_disk(), pytest.raises(DataError, match=r"features cannot be saved.*make room"):
        cache.read(films[:1])
    assert not list(tmp_path.iterdir())


# feature files


def hold(folder: Path, key: FeatureKey, tokens: dict[Source, SideTokens | None]) -> Path:
    """Feature files with tokens that no encoder would make. None: the clip lacks the stream."""
    entries = []
    for film, side in tokens.items():
        absent = "absent: no audio track" if side is None else ""
        media, _ = identity(film, "audio")
        entries.append(ClipEntry(path=film.video.name, size=film.video.stat().st_size, media=media, absent=absent))
    write(folder / "0.safetensors", key, entries, {i: side for i, side in enumerate(tokens.values()) if side})
    return folder


def spoken(seed: int, dim: int = 16) -> SideTokens:
    return SideTokens.regular(torch.randn(4, dim, generator=torch.Generator().manual_seed(seed)), rate=5)


LOGMEL = FeatureKey.of(load_encoder("logmel", bands=16, rate=5), "float32")


def test_side_tokens_of_feature_files_replace_encoding(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    held = hold(tmp_path / "made", LOGMEL, {films[0]: spoken(0), films[2]: None})
    live = store(model, None).read(films[:1])[films[0]]
    for folder in (tmp_path / "cache", tmp_path / "cache", None):  # fresh, cached, and in memory
        reading = FeatureCache(model, [load_encoder("logmel", bands=16, rate=5)], folder, [held])
        found = reading.read(films)
        side, silent = found[films[0]].sides[KEY], found[films[2]]
        assert side is not None and torch.equal(side.x, spoken(0).x)
        assert torch.equal(found[films[0]].vision, live.vision), "vision features are not replaced"
        assert silent.sides[KEY] is None and silent.absent[KEY] == "absent: no audio track"
        assert "not one of the 2 encoded" in reading.refused[films[1]]
    assert equal(store(model, tmp_path / "cache").read(films[:1])[films[0]], live), "and not mixed up"


def test_feature_files_of_another_encoder_are_refused_with_both_hashes(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    encoder = load_encoder("logmel", bands=32, rate=5)
    held = hold(tmp_path, LOGMEL, {films[0]: spoken(0)})
    with pytest.raises(DataError, match=rf"{KEY[:12]}.*needed are those of logmel {encoder.spec.preprocessing[:12]}"):
        FeatureCache(model, [encoder], None, [held])


def test_folders_with_one_key_are_merged_and_with_two_are_refused(
    model: PatchedModel, films: list[Source], tmp_path: Path
) -> None:
    encoder = load_encoder("logmel", bands=16, rate=5)
    half = LOGMEL.model_copy(update={"dtype": "float16"})
    held = [hold(tmp_path / f"{i}", LOGMEL, {film: spoken(i)}) for i, film in enumerate(films[:2])]
    found = FeatureCache(model, [encoder], None, held).read(films[:2])
    sides = [clip.sides[KEY] for clip in found.values()]
    assert len(sides) == 2 and all(side and torch.equal(side.x, spoken(i).x) for i, side in enumerate(sides))
    with pytest.raises(DataError, match=r"float32\), but .* float16\); use one of them"):
        FeatureCache(model, [encoder], None, [*held, hold(tmp_path / "half", half, {films[2]: spoken(2)})])


def test_feature_files_of_another_vision_tower_are_refused_with_both_hashes(
    model: PatchedModel, films: list[Source], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tower = load_encoder("base-tower").on(model.host)
    held = hold(tmp_path, FeatureKey.of(tower, "float32"), {films[0]: spoken(0)})
    FeatureCache(model, [tower], None, [held])
    other = PatchedModel(make_base(tokenizer))
    next(other.base.model.vision_tower.parameters()).data += 0.5
    theirs = load_encoder("base-tower").on(other.host)
    with pytest.raises(
        DataError, match=rf"weights {tower.fingerprint[:12]}.*this base has weights {theirs.fingerprint[:12]}"
    ):
        FeatureCache(other, [theirs], None, [held])


def test_a_patch_trains_on_feature_files_without_the_encoder_and_records_their_weights(
    recipe: Callable[..., Recipe], workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAVE_IMAGEBIND", raising=False)
    clips = sorted((workshop / "clips").glob("train-*.mp4"))
    tokens: dict[Source, SideTokens | None] = {Source(clip): spoken(i, 1024) for i, clip in enumerate(clips)}
    key = FeatureKey.of(load_encoder("imagebind-audio"), "float32", published=True)
    kinds = {name: key.model_copy(update={"published": False, "weights": name * 64}) for name in "ab"}
    held = {name: hold(tmp_path / name, kind, tokens) for name, kind in kinds.items()}
    hears = "senses.audio={encoder: imagebind-audio}"
    with pytest.raises(EncoderError, match=f"for research only.*{CONSENT}=1"):
        train(recipe(hears, f"data.features=[{held['a']}]"))
    monkeypatch.setenv(CONSENT, "1")
    patch = train(recipe(hears, f"data.features=[{held['a']}]")).patch
    facts = Patch.load(patch).config.senses["audio"]
    assert facts.licence == "CC-BY-NC-SA-4.0" and facts.weights == "a" * 64
    with pytest.raises(PatchMismatch, match=f"weights {'a' * 12}, .* {'b' * 12}"):
        Setup.of(
            recipe(hears, f"data.features=[{held['b']}]", f"train.on_top_of=[{patch}]", "name=more", output="more")
        )


def test_feature_folders_are_relative_to_the_recipe(workshop: Path, tmp_path: Path) -> None:
    text = (workshop / "patch.yaml").read_text().replace("data: {", "data: {features: [a, /b], ")
    (tmp_path / "patch.yaml").write_text(text)
    assert read_recipe(tmp_path).data.features == (tmp_path / "a", Path("/b"))
