"""Claims about watching: after a whole file the answer is that of `ask`, at any moment that of the file up to then;
memory is bounded; and what cannot be watched is refused, with nothing lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import click, counting_frames, number, write_clip
from families import FRAMES
from families import make_base as make_family
from patched import READ, RESAMPLER, config_for, favors, hears, other_ears, sense
from small import awaken, make_config
from torch import Tensor

from pave.config import ResamplerConfig, SenseFacts
from pave.encoder import load_encoder
from pave.errors import EncoderError, MediaError, PatchNotFound, UsageError
from pave.media.arrays import pictures_of
from pave.media.clip import Clip
from pave.media.pixels import scaled
from pave.media.resampling import Resampling, resample
from pave.model.patched import PatchedModel
from pave.model.watch import PATIENCE, Show
from pave.streaming.chunks import chunks_of
from pave.streaming.memory import History

QUESTION = "What do you hear?"


def tone(seconds: float, rate: int) -> np.ndarray:
    """A rising tone: no two moments sound alike."""
    clock = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 40 * clock) * clock)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    return {
        "short": write_clip(folder / "short.mp4", counting_frames(60), 10, tone(6, 16_000), 16_000),
        "long": write_clip(folder / "long.mp4", counting_frames(100), 4, tone(25.3, 44_100), 44_100),
        "late": write_clip(folder / "late.mkv", counting_frames(40), 8, tone(4, 48_000), 48_000, audio_start=1.7),
        "mute": write_clip(folder / "mute.mp4", counting_frames(30), 10),
        "audio": write_clip(folder / "audio.m4a", None, audio=tone(3, 48_000)),
    }


def remembered(show: Show) -> tuple[Any, list[Any], list[Any]]:
    """Key frames, side tokens, and outputs of resamplers."""
    clip, sides, made, *_ = show._remembered()
    return clip, list(sides.values()), list(made.values())


def chunks(seconds: int, rate: int = 16_000, each: float = 0.5) -> Iterator[tuple[Any, Any, Any]]:
    """A camera with 4 numbered pictures per second, and a microphone."""
    pictures, sound = counting_frames(4 * seconds), tone(seconds, rate)
    for i in range(round(seconds / each)):
        own, heard = slice(round(4 * each * i), round(4 * each * (i + 1))), round(rate * each)
        yield pictures[own], np.arange(own.start, own.stop) / 4, sound[heard * i : heard * (i + 1)]


# A file


@pytest.mark.parametrize("file", ["short", "long", "late", "mute"])
def test_after_a_whole_file_the_answer_is_that_of_ask(one: PatchedModel, files: dict[str, Path], file: str) -> None:
    hears(one)
    with one.watch(files[file]) as show:
        show.see()
        watched, asked = show.ask(QUESTION), one.ask(files[file], QUESTION)
        clip, (side,), _ = remembered(show)
    assert watched == asked and watched.patches == ("ears",)
    assert watched.signals.keys() == asked.signals.keys() == {"audio"}
    assert file == "mute" or watched.signals == asked.signals
    whole = Clip.read(files[file], frames=FRAMES)
    assert clip.frames is not None and clip.times is not None and whole.times is not None
    assert whole.frames is not None and torch.equal(clip.frames, scaled(whole.frames, one.host.size))
    assert torch.allclose(clip.times, whole.times, rtol=0, atol=1e-9)
    (heard,) = one.encode([whole])[0].sides.values()
    if file == "mute":
        assert side is None and heard is None
    elif file == "short":
        assert heard and torch.equal(side.x, heard.x) and torch.equal(side.times, heard.times)
    else:
        assert heard and torch.allclose(side.times, heard.times, rtol=0, atol=1e-9)
        assert (side.x - heard.x).abs().max() <= 1e-5 * heard.x.abs().max()


@pytest.mark.parametrize("way", READ)
def test_resamplers_run_incrementally(one: PatchedModel, files: dict[str, Path], way: str) -> None:
    """Of 25 seconds the first 24 are finished, and none of the windows before."""
    favors(one, way)
    with one.watch(files["long"]) as show:
        show.see()
        watched, asked = show.ask(QUESTION), one.ask(files["long"], QUESTION)
        _, _, (made,) = remembered(show)
    assert watched == asked and watched.signals == asked.signals
    (use,) = one.prepare([Clip.read(files["long"], frames=FRAMES)], [QUESTION]).uses
    resampler: Any = use.attached.resampler
    with torch.no_grad():
        side, _ = resampler({sense: sides[0] for sense, sides in use.sides.items()})
    assert torch.allclose(made[1], side.times[0], rtol=0, atol=1e-9)
    assert (made[0] - side.x[0, :, :, 0]).abs().max() <= 1e-5 * side.x.abs().max()


@pytest.mark.parametrize("second", [0.5, 3.2, 17.5])
def test_at_any_moment_the_key_frames_are_those_of_the_file_up_to_then(
    one: PatchedModel, files: dict[str, Path], second: float
) -> None:
    hears(one)
    with one.watch(files["long"]) as show:
        assert second <= show.see(second) < second + 0.25
        clip, (side,), _ = remembered(show)
        assert show.ask(QUESTION).signals["audio"].startswith("present")
    until = Clip.read(files["long"], frames=FRAMES, end=show.now + 0.01)
    assert until.frames is not None and torch.equal(clip.frames, scaled(until.frames, one.host.size))
    assert until.times is not None and torch.allclose(clip.times, until.times, rtol=0, atol=1e-9)
    assert abs(side.times[-1].item() - show.now) < 0.5


def test_a_file_is_read_no_further_than_it_is_watched(files: dict[str, Path]) -> None:
    reading = chunks_of(str(files["long"]))
    first, *some = (next(reading) for _ in range(8))
    assert some[-1].frames is not None and number(some[-1].frames[0].numpy()) == 7
    heard = sum(chunk.sound.shape[1] / chunk.rate for chunk in [first, *some] if chunk.sound is not None)
    assert 1.6 < heard < 1.9 and first.start == 0
    reading.close()


def test_sound_after_the_last_picture_is_read_second_by_second(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "podcast.mp4", counting_frames(2), 2, tone(20, 48_000), 48_000)
    lengths = [0 if chunk.sound is None else chunk.sound.shape[1] / chunk.rate for chunk in chunks_of(str(path))]
    assert sum(lengths) == pytest.approx(20, abs=0.1) and max(lengths) < 1.6  # the sound is read half a second ahead


def test_sound_that_begins_late_keeps_its_start_time(files: dict[str, Path]) -> None:
    parts = [chunk for chunk in chunks_of(str(files["late"])) if chunk.sound is not None and chunk.sound.shape[1]]
    whole = Clip.read(files["late"])
    assert whole.audio is not None and {part.start for part in parts} == {whole.audio_start} and whole.audio_start > 1.6
    assert torch.allclose(torch.cat([part.sound for part in parts], -1), whole.audio, atol=1e-6)  # type: ignore[misc]


@pytest.mark.parametrize(("hertz", "to"), [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000, 16_000)])
def test_sound_in_chunks_is_resampled_as_the_whole(hertz: int, to: int) -> None:
    sound = torch.randn(1, 3 * hertz + 17, generator=torch.Generator().manual_seed(0))
    resampling = Resampling(hertz, to)
    parts = [
        resampling.feed(part)
        for part in sound.split([5, 1000, 0, 40_000 % hertz, 3 * hertz + 17 - 1005 - 40_000 % hertz], -1)
    ]
    assert resampling.held is not None and resampling.held.shape[1] < 3000
    parts.append(resampling.feed(sound[:, :0], last=True))
    assert torch.allclose(torch.cat(parts, -1), resample(sound, hertz, to), rtol=0, atol=1e-6)


# Dense pictures


def looks(model: PatchedModel, name: str = "eyes", **options: Any) -> None:
    model.attach(name, make_config(model.host, name, senses={"fast": eyes(model, **options)}), trainable=False)
    awaken(model, name)


def eyes(model: PatchedModel, **options: Any) -> SenseFacts:
    return load_encoder("base-tower", **options).on(model.host).spec.facts("time")


@pytest.mark.parametrize(("pictures", "fps", "seen"), [(5, 2, 5), (16, 2, 16), (27, 2, 27), (260, 25, 21), (1, 25, 1)])
def test_pictures_between_key_frames_are_those_of_ask(one, tmp_path: Path, pictures: int, fps: int, seen: int) -> None:
    looks(one, rate=2)
    path = write_clip(tmp_path / "slow.mp4", counting_frames(pictures), fps)
    with one.watch(path) as show:
        show.see()
        watched, asked = show.ask(QUESTION), one.ask(path, QUESTION)
        _, (side,), _ = remembered(show)
    (whole,) = one.encode([Clip.read(path, frames=FRAMES)])[0].sides.values()
    assert (
        watched == asked
        and watched.signals == asked.signals
        and watched.signals["fast"].startswith(f"present: {seen} ")
    )
    assert whole and torch.equal(side.x, whole.x) and torch.equal(side.times, whole.times)


@pytest.mark.parametrize(("pictures", "steps"), [(260, 11), (290, 12)])
def test_a_base_that_encodes_pairs_of_frames_repeats_the_last_picture(
    tokenizer, tmp_path: Path, pictures, steps
) -> None:
    """21 instants of 260 pictures, so the last has no partner; 24 of 290."""
    model = PatchedModel(make_family(tokenizer, family="qwen2_vl"))
    facts = eyes(model, rate=2)
    model.attach("eyes", config_for(model.host, senses={"fast": facts}), trainable=False)
    awaken(model, "eyes")
    path = write_clip(tmp_path / "pairs.mp4", counting_frames(pictures), 25)
    with model.watch(path) as show:
        show.see()
        watched, asked = show.ask(QUESTION), model.ask(path, QUESTION)
        _, (side,), _ = remembered(show)
    (whole,) = model.encode([Clip.read(path, frames=FRAMES)])[0].sides.values()
    assert watched == asked and watched.signals["fast"].startswith(f"present: {steps} ")
    assert whole and torch.equal(side.x, whole.x) and torch.equal(side.times, whole.times)


@pytest.mark.parametrize("each", [0.5, 1.0, 5.0])
def test_dense_frames_of_a_camera_begin_with_its_first_picture(one: PatchedModel, each: float) -> None:
    looks(one, rate=1.6)
    with one.watch(((f, t + 3, s) for f, t, s in chunks(20, each=each)), rate=16_000) as show:
        show.see()
        _, (side,), _ = remembered(show)
    instants = torch.arange(32) / 1.6  # the last picture is at 19.75 s
    shown = counting_frames(80)[(instants * 4 + 1e-6).floor().long().numpy()]
    pooled = one.host.watch(pictures_of(shown)).unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((2, 4))
    assert torch.allclose(side.times, 3 + instants.double(), rtol=0, atol=1e-9)
    assert torch.allclose(side.x, pooled, atol=1e-6)


def both(model: PatchedModel) -> None:
    """A resampler of ten sound steps and two picture steps a second."""
    senses = {"audio": sense(bands=16, rate=10), "fast": eyes(model, rate=2, grid=[1, 1])}
    resampler = ResamplerConfig.model_validate(RESAMPLER | {"stride": 2})
    model.attach("favor", make_config(model.host, "favor", senses=senses, resampler=resampler), trainable=False)
    awaken(model, "favor")


@pytest.mark.parametrize(
    ("pictures", "fps", "seconds"),
    [(250, 2, 125), (250, 2, 0), (260, 25, 10.4), (130, 12.5, 10.6), (1, 25, 3), (250, 2, 21.3), (21, 2, 125)],
)
def test_sound_and_pictures_together_are_those_of_ask(one, tmp_path: Path, pictures, fps, seconds) -> None:
    both(one)
    sound = tone(seconds, 16_000) if seconds else None
    path = write_clip(tmp_path / "both.mp4", counting_frames(pictures), fps, sound, 16_000)
    with one.watch(path) as show:
        show.see()
        watched, asked = show.ask(QUESTION), one.ask(path, QUESTION)
        _, _, (made,) = remembered(show)
    assert watched == asked and watched.signals["fast"] == asked.signals["fast"]
    (use,) = one.prepare([Clip.read(path, frames=FRAMES)], [QUESTION]).uses
    resampler: Any = use.attached.resampler
    with torch.no_grad():
        side, _ = resampler({sense: sides[0] for sense, sides in use.sides.items()})
    assert torch.allclose(made[1], side.times[0], rtol=0, atol=1e-9)
    assert (made[0] - side.x[0, :, :, 0]).abs().max() <= 1e-5 * side.x.abs().max()


@pytest.mark.parametrize("late", [None, 70.0])
def test_a_resampler_stops_waiting_for_a_missing_sense(one: PatchedModel, late: float | None) -> None:
    both(one)
    waiting, film = [], chunks(240, each=1)
    silent = ((f, t, s if late is not None and not 8 <= t[0] < late else None) for f, t, s in film)
    with one.watch(silent, rate=16_000) as show:
        ((listening, _),) = show.resamplers.values()
        for _ in show:
            tokens = listening.senses["fast"].tokens
            waiting.append(0 if tokens is None else len(tokens.times))
        assert max(waiting) < 2 * (PATIENCE + 20)
        heard = show.ask(QUESTION).signals["audio"]
    if late is None:
        assert heard == "absent: no sound has come"
    else:  # but for the first eight seconds, all of it is 62 or 72 seconds behind
        assert heard == "present: 1780 steps from 0.05 s; 1700 steps arrived over 60 s late and were skipped"


def test_a_resampler_stops_waiting_for_missing_pictures(one: PatchedModel) -> None:
    both(one)
    film = [(None, None, sound) if i > 3 else (f, t, sound) for i, (f, t, sound) in enumerate(chunks(240, each=1))]
    with one.watch(film, rate=16_000) as show:
        ((listening, _),) = show.resamplers.values()
        waiting = [0 if (of := listening.senses["audio"].tokens) is None else len(of.times) for _ in show]
        assert max(waiting) < 10 * (PATIENCE + 20)
        signals = show.ask(QUESTION).signals
    assert signals == {"audio": "present: 2400 steps from 0.05 s", "fast": "present: 8 steps from 0.00 s"}
    with one.watch(film, rate=16_000) as show:
        assert show.see(20) == 3.75 and show.sound_end == 20 + PATIENCE


# A camera


def test_a_camera_is_watched_and_asked_at_any_moment(one: PatchedModel) -> None:
    hears(one)
    with one.watch(chunks(20), rate=16_000) as show:
        reached = list(show)
        answer = show.ask(QUESTION)
        clip, (side,), _ = remembered(show)
    assert reached == [0.5 * i + 0.25 for i in range(40)]
    assert [number(frame.numpy()) for frame in clip.frames] == [0, 26, 52, 79] and clip.times is not None
    whole = Clip.from_frames(clip.frames, clip.times, audio=tone(20, 16_000), rate=16_000)
    assert one.ask(whole, QUESTION) == answer
    (heard,) = one.encode([whole])[0].sides.values()
    assert heard and (side.x - heard.x).abs().max() <= 1e-5 * heard.x.abs().max()


def test_a_question_can_be_about_the_last_seconds(one: PatchedModel) -> None:
    favors(one)
    hears(one)
    with one.watch(chunks(60), rate=16_000, last=10) as show:
        show.see()
        assert show.ask(QUESTION, patches=["ears"]).patches == ("ears",)
        clip, (side,), (made,) = remembered(show)
    assert clip.times is not None and clip.times.tolist() == pytest.approx(np.linspace(49.75, 59.75, FRAMES))
    assert [number(frame.numpy()) for frame in clip.frames] == [199, 212, 225, 239]
    assert 49.75 <= side.times[0] < 50 and side.times[-1] > 59.75 and 49.75 <= made[1][0] < 52
    assert len(show.pictures.held) == 41 and len(show.tokens.popitem()[1].held) < 20


def test_signals_of_an_answer_are_those_of_the_seconds_that_the_question_covers(one: PatchedModel) -> None:
    favors(one)
    hears(one)
    ending = [(f, t, sound if t[0] < 20 else None) for f, t, sound in chunks(60)]
    for last, message in ((45, "present: 26 steps from 14.90 s"), (30, "absent: no sound has come from 29.75 s on")):
        with one.watch(ending, rate=16_000, last=last) as show:
            show.see()
            assert show.ask(QUESTION, patches=["ears"]).signals == {"audio": message}
            assert show.ask(QUESTION, patches=["favor"]).signals["fast"].startswith(message[:7])


def test_a_patch_that_is_disabled_is_not_asked_unless_it_was_named(one: PatchedModel) -> None:
    hears(one)
    hears(one, "more")
    with one.watch(chunks(2), rate=16_000) as show, one.watch(chunks(2), rate=16_000, patches=["ears"]) as named:
        show.see()
        named.see()
        one.disable("ears")
        assert show.ask(QUESTION).patches == ("more",) and named.ask(QUESTION).patches == ("ears",)
        assert show.ask(QUESTION, patches=["ears"]).patches == ("ears",)


def test_a_camera_may_change_the_size_of_its_pictures(one: PatchedModel) -> None:
    both(one)
    sizes = [(f[:, :: 1 + i % 2, :: 1 + i % 2], t, s) for i, (f, t, s) in enumerate(chunks(12, each=0.25))]
    with one.watch(sizes, rate=16_000) as show:
        show.see()
        signals = show.ask(QUESTION).signals
        eye = show.encoders[one.export("favor").config.senses["fast"].preprocessing]
    assert signals["fast"] == "present: 24 steps from 0.00 s" and len(vars(eye)["held"]) < 8


def test_memory_is_bounded_and_the_rest_is_spread_evenly_over_the_past(one: PatchedModel) -> None:
    hears(one)
    favors(one)
    size = 200_000
    held, film = [], list(chunks(20))
    with one.watch(looped(film, 20, 12), rate=16_000, memory=size) as show:
        for _ in show:
            memories = [show.pictures, *show.tokens.values(), *(memory for _, memory in show.resamplers.values())]
            assert all(memory.nbytes <= size for memory in memories)
            ears: Any = show.encoders.values()
            held.append(sum(each.sound.nbytes for each in ears if each.sound is not None))
        clip, (side,), _ = remembered(show)
        assert show.ask(QUESTION)
    assert max(held[len(held) // 2 :]) <= max(held[: len(held) // 2]), "held sound does not grow"
    assert show.pictures.every > 1 and clip.times is not None
    older = torch.linspace(0, show.now, FRAMES) - clip.times
    assert older.min() > -1e-9 and older.max() < show.pictures.every / 4 and clip.times[-1] == show.now == 239.75
    assert side.times.diff().max() <= 2 * max(memory.every for memory in show.tokens.values())


def looped(film: list[tuple[Any, Any, Any]], seconds: int, times: int) -> Iterator[tuple[Any, Any, Any]]:
    for i in range(times):
        for frames, clock, sound in film:
            yield frames, clock + i * seconds, sound


@pytest.mark.parametrize("count", [3, 10, 11, 100, 1000])
def test_thinning_is_even_and_creates_no_more_entries_than_it_stores(count: int) -> None:
    memory, made = History(10 * 8), []

    def make(second: int) -> tuple[Tensor]:
        made.append(second)
        return (torch.tensor([second]),)

    for second in range(count):
        memory.add(second, lambda second=second: make(second))
    (held,) = memory.joined()
    assert held.tolist() == list(range(0, count, memory.every)) and len(held) <= 10
    assert len(held) > 5 or memory.every == 1
    assert len(made) <= 10 + 6 * math.log2(max(2, count))


# What cannot be watched


def test_a_patch_that_needs_the_whole_clip_is_refused_by_name(one: PatchedModel) -> None:
    facts = eyes(one, sense="views")
    one.attach("eyes", make_config(one.host, "eyes", senses={"views": facts}), trainable=False)
    with pytest.raises(EncoderError, match="eyes needs the whole clip for base-tower, which reads views"):
        one.watch(chunks(2), rate=16_000)
    assert one.watch(chunks(2), rate=16_000, patches=[]).see() == 1.75


def test_a_file_without_pictures_and_a_wrong_source_are_refused(one: PatchedModel, files: dict[str, Path]) -> None:
    with pytest.raises(MediaError, match=r"audio\.m4a: has no pictures, .*; give a video"):
        one.watch(files["audio"]).see()
    with pytest.raises(MediaError, match=r"gone\.mp4: no such file"):
        one.watch("gone.mp4").see()
    for source in (7, torch.zeros(4, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(
            MediaError, match=r"pass the path of a video file, or an iterable of \(frames, times, samples\)"
        ):
            one.watch(source)
    with pytest.raises(ValueError, match="last=0"):
        one.watch(files["short"], last=0)
    begun_later = [(f, t + 3000, s) for f, t, s in chunks(2)]
    for source in (begun_later, [(None, None, begun_later[0][2]), *begun_later]):
        with pytest.raises(
            MediaError, match=r"pictures are at 3000 s, their sound is at 0(\.5)? s; .* begin with silence"
        ):
            one.watch(source, rate=16_000).see()
    with pytest.raises(ValueError, match="memory=0"):
        one.watch(files["short"], memory=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (7, "a chunk is .*, got a int"),
        ((None, None), "a chunk is .*, got 2 values"),
        ((np.zeros((1, 8, 8, 3), np.uint8), [0.1], None), "a picture at 0.1 s follows one at 0.75 s"),
        ((np.zeros((1, 8, 8, 3), np.uint8), [1e9], None), r"no picture between 0\.75 s and 1e\+09 s"),
        ((np.zeros((1, 8, 8, 3), np.uint8), None, None), "pictures but no times"),
        ((None, [1.0], np.zeros(8)), "times but no pictures"),
        ((np.zeros((1, 8, 8, 3), np.uint8), [1.0, 1.1], None), "2,.* there are 1 frames"),
        ((np.zeros((1, 8, 8, 3)), [1.0], None), "float64"),
        ((np.zeros((1, 8, 8, 3), np.uint8), [1.0], np.full(8, 99.0)), "a sample of 99"),
    ],
)
def test_a_bad_chunk_is_refused_and_the_next_is_read(one: PatchedModel, bad: Any, message: str) -> None:
    hears(one)
    good = list(chunks(4))
    show = one.watch([*good[:2], bad, *good[2:]], rate=16_000)
    assert (next(show), next(show)) == (0.25, 0.75)
    with pytest.raises(MediaError, match=message):
        next(show)
    whole = one.watch(good, rate=16_000)
    assert show.see() == whole.see() == 3.75
    (one_clip, (side,), _), (other_clip, (other,), _) = remembered(show), remembered(whole)
    assert torch.equal(one_clip.frames, other_clip.frames) and torch.equal(side.x, other.x)


def test_sound_without_a_rate_is_refused(one: PatchedModel) -> None:
    with pytest.raises(MediaError, match="audio needs its sampling rate"):
        one.watch(chunks(2)).see()


def test_a_question_before_the_first_picture_or_of_another_patch_is_refused(one: PatchedModel) -> None:
    hears(one)
    with one.watch(chunks(4), rate=16_000) as show:
        with pytest.raises(MediaError, match="there is no picture and no sound yet"):
            show.ask(QUESTION)
        next(show)
        hears(one, "late", senses={"audio": sense(rate=4)})
        with pytest.raises(PatchNotFound, match=r"late: watch\(\) was called without it"):
            show.ask(QUESTION, patches=["late"])
        assert show.ask(QUESTION).patches == ("ears",)
        assert show.ask(QUESTION, patches=[]).patches == ()


def test_a_patch_that_is_changed_or_removed_while_watching(one: PatchedModel) -> None:
    hears(one)
    favors(one)
    with one.watch(chunks(4), rate=16_000, patches=["ears", "favor"]) as show:
        show.see()
        assert show.ask(QUESTION).patches == ("ears", "favor")
        one.swap_patch("ears", other_ears(one), strict=False)
        assert show.ask(QUESTION, patches=["ears"]).patches == ("ears",)
        one.swap_patch("favor", one.export("favor"))
        with pytest.raises(PatchNotFound, match=r"favor: watch\(\) was called without it"):
            show.ask(QUESTION, patches=["favor"])
        one.remove_patch("ears")
        with pytest.raises(PatchNotFound, match="ears"):
            show.ask(QUESTION)
        assert show.ask(QUESTION, patches=[]) == one.ask(remembered(show)[0], QUESTION)


def test_a_watched_file_is_read_as_it_is_told_and_its_warnings_are_passed_on(one: PatchedModel, tmp_path: Path) -> None:
    film = write_clip(tmp_path / "two.mkv", counting_frames(20), 10, click(2, 0.5), more_audio=[click(2, 1.5)])
    with one.watch(film) as show:
        show.see()
        assert show.sound_end == -math.inf, "nobody hears"
    hears(one)
    (tmp_path / "half.mkv").write_bytes(film.read_bytes()[: film.stat().st_size * 3 // 4])
    with one.watch(tmp_path / "half.mkv") as show:
        show.see()
        told = show.ask("What?", max_new_tokens=1).warnings
    assert told[0].startswith("cut short") and "2 sound tracks: audio_track=0 is used" in told
    for track, loud in ((0, False), (1, True)):
        with one.watch(film, audio_track=track) as show:
            show.see()
            answer = show.ask("What?", max_new_tokens=1)
            assert answer.signals["audio"].startswith("present") and answer.warnings == ()
            (side,) = (each.unfinished() for each in show.encoders.values())
            assert side is not None and (side.times[side.x.mean((1, 2, 3)).argmax()].item() > 1) == loud
    with pytest.raises(UsageError, match="audio_track: chooses a track of a file"):
        one.watch([], audio_track=1)


def test_pieces_of_sound_have_the_channels_of_those_before(one: PatchedModel) -> None:
    hears(one)
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (16_005, 2)).astype(np.float32)
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    for pieces in ((sound[:16_000], sound[16_000:]), (sound[:16_000].T, sound[16_000:].T)):
        show = one.watch([(picture, [0.0], pieces[0]), (picture, [1.0], pieces[1])], rate=16_000)
        assert show.see() == 1.0 and show.sound_end == pytest.approx(16_005 / 16_000)
