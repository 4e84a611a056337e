"""Claims about watching without pictures: after a whole file of sound the answer is that of `ask`, at any moment that
of the file up to then; memory is bounded; and once pictures come, the stream is a film."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import counting_frames, write_clip
from families import FRAMES
from patched import favors, hears
from small import awaken
from test_watch import both, eyes, remembered, tone

from pave.config import FusionConfig
from pave.errors import MediaError
from pave.media.clip import Clip
from pave.model.patched import PatchedModel

QUESTION = "What do you hear?"
RATE = 16_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sounds")
    return {
        "wav": write_clip(folder / "a.wav", None, audio=tone(25.3, 44_100), rate=44_100, audio_codec="pcm_s16le"),
        "mp3": write_clip(folder / "a.mp3", None, audio=tone(5, 48_000), audio_codec="mp3"),
        "late": write_clip(folder / "a.mkv", None, audio=tone(4, 48_000), audio_start=1.7),
        "short": write_clip(folder / "b.wav", None, audio=tone(0.3, RATE), rate=RATE, audio_codec="pcm_s16le"),
    }


def microphone(seconds: float, each: float = 0.5) -> Iterator[tuple[None, None, Any]]:
    for part in np.array_split(tone(seconds, RATE), round(seconds / each)):
        yield None, None, part


@pytest.mark.parametrize(
    ("file", "combine"), [("wav", "add"), ("mp3", "add"), ("late", "add"), ("short", "prefix"), ("short", "compact")]
)
def test_after_a_whole_file_of_sound_the_answer_is_that_of_ask(one: PatchedModel, files, file: str, combine) -> None:
    hears(one, sound_alone=True, fusion=FusionConfig(width=32, heads=2, combine=combine))
    with one.watch(files[file]) as show:
        end = show.see()
        watched, asked = show.ask(QUESTION), one.ask(files[file], QUESTION)
        clip, (side,), _ = remembered(show)
    assert watched == asked and watched.signals == asked.signals
    whole = one.encode([Clip.read(files[file], frames=FRAMES)])[0]
    (heard,) = whole.sides.values()
    assert torch.allclose(clip.times, whole.times, rtol=0, atol=1e-9) and clip.times[-1] == end
    assert heard and torch.allclose(side.times, heard.times, rtol=0, atol=1e-9)
    assert (side.x - heard.x).abs().max() <= 1e-5 * heard.x.abs().max()


@pytest.mark.parametrize("second", [0.5, 17.5])
def test_at_any_moment_the_answer_is_that_of_the_sound_up_to_then(one: PatchedModel, files, second: float) -> None:
    hears(one, sound_alone=True)
    with one.watch(files["wav"]) as show:
        assert second <= show.see(second) < second + 1.6
        watched, (_, (side,), _) = show.ask(QUESTION), remembered(show)
    until = Clip.read(files["wav"], frames=FRAMES, end=show.now)
    assert watched == one.ask(until, QUESTION)
    (heard,) = one.encode([until])[0].sides.values()
    assert heard and (side.x - heard.x).abs().max() <= 1e-5 * heard.x.abs().max()


def test_a_microphone_is_asked_at_any_moment_in_bounded_memory(one: PatchedModel) -> None:
    hears(one, sound_alone=True)
    with one.watch(microphone(120), rate=RATE, memory=20_000) as show:
        assert [next(show) for _ in range(40)] == [0.5 * (i + 1) for i in range(40)]
        so_far = Clip.from_frames(audio=tone(120, RATE)[: 20 * RATE], rate=RATE)
        assert show.ask(QUESTION) == one.ask(so_far, QUESTION)
        show.see()
        (memory,) = show.tokens.values()
        assert memory.nbytes <= 20_000 and memory.every > 1 and show.ask(QUESTION)
    with one.watch(microphone(60), rate=RATE, last=10) as show:
        assert show.see() == 60
        clip, (side,), _ = remembered(show)
        assert show.ask(QUESTION).signals["audio"].endswith("steps from 50.10 s")
    assert clip.times.tolist() == pytest.approx(np.linspace(50, 60, FRAMES))
    assert 50 <= side.times[0] < 50.2 and side.times[-1] > 59.8


def resampling(model: PatchedModel, way: str) -> None:
    """A resampler of two sounds; or one of sound and dense pictures, which never come."""
    (favors if way == "sounds" else both)(model)
    patch = model.export("favor")
    model.remove_patch("favor")
    model.attach("favor", patch.config.model_copy(update={"sound_alone": True}), trainable=False)
    awaken(model, "favor")


@pytest.mark.parametrize("way", ["sounds", "sound and pictures"])
def test_a_resampler_hears_without_pictures(one: PatchedModel, way: str) -> None:
    resampling(one, way)
    with one.watch(microphone(100), rate=RATE) as show:
        show.see()
        watched = show.ask(QUESTION)
    assert watched == one.ask(Clip.from_frames(audio=tone(100, RATE), rate=RATE), QUESTION)
    assert [*watched.signals.values()][-1].startswith("present" if way == "sounds" else "absent: no picture")


def test_from_the_first_picture_on_it_is_a_film(one: PatchedModel) -> None:
    hears(one, sound_alone=True)
    sound, pictures = list(microphone(90)), counting_frames(40)
    film = [(pictures[4 * i : 4 * i + 4], 80 + i + np.arange(4) / 4, None) for i in range(10)]
    with one.watch([*sound[:160], *film, *sound[160:]], rate=RATE) as show:
        assert [next(show) for _ in range(161)][-2:] == [80, 80.75]
        show.see()
        clip, _, _ = remembered(show)
        watched = show.ask(QUESTION)
    assert show.now == 89.75 and clip.times.tolist() == pytest.approx(np.linspace(80, 89.75, FRAMES))
    whole = Clip.from_frames(clip.frames, clip.times, audio=tone(90, RATE), rate=RATE)
    assert watched == one.ask(whole, QUESTION)


def test_what_cannot_be_answered_from_sound_is_refused(one: PatchedModel, files, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"a\.wav: has no pictures, and no sound that a patch hears"):
        one.watch(files["wav"]).see()
    hears(one)
    with one.watch(microphone(2), rate=RATE) as show:
        with pytest.raises(MediaError, match="no picture and no sound yet; read further"):
            show.ask(QUESTION)
        show.see()
        with pytest.raises(MediaError, match=r"has no pictures \(ears: trained with pictures only\).*modalities"):
            show.ask(QUESTION)
        with pytest.raises(MediaError, match=r"has no pictures \(no patch is used"):
            show.ask(QUESTION, patches=[])
    hears(one, "eyes", sound_alone=True, senses={"fast": eyes(one, rate=2)})
    with one.watch(microphone(2), rate=RATE) as show:
        show.see()
        with pytest.raises(MediaError, match=r"nothing else of it can be read \(.*fast absent: no picture has come"):
            show.ask(QUESTION)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(files["wav"].read_bytes()[:44])
    with pytest.raises(MediaError, match=r"broken\.wav"):
        one.watch(broken).see()
