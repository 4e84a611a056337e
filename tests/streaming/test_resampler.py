"""Claims about resamplers that hear as time goes by: bit by bit what they make of the whole recording at
once, whatever the pieces, in memory that does not grow; and what comes late is refused."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pave.config import ResamplerConfig
from pave.errors import SignalError
from pave.fusion.align import align
from pave.fusion.qformer import WINDOWS, Resampler, build_resampler
from pave.sidechannel import SideBatch, SideTokens
from pave.streaming.resampler import StreamingResampler

SENSES = (("video", 3), ("audio", 6))
SECONDS = 80  # 160 steps, 40 windows of 4
WAYS: dict[str, dict[str, Any]] = {
    "queries": {},
    "future": {"causal_direction": "future"},
    "finer": {"finer": (1, 2)},
    "overlapping": {"stride": 3},
    "states": {"readout": "states", "queries": 32},
    "states that overlap": {"readout": "states", "queries": 32, "stride": 1},
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awake(module: nn.Module) -> Any:
    torch.manual_seed(0)
    for name, weight in module.named_parameters():
        nn.init.normal_(weight, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return module.eval()


def resampler_of(**changes: Any) -> Resampler:
    shape = {"slots": 5, "window": 4, "queries": 4, "width": 16, "heads": 2}
    return awake(build_resampler(ResamplerConfig.model_validate(shape | changes), "add", SENSES))


def recording(seconds: int = SECONDS) -> dict[str, SideTokens]:
    """Pictures that are a little early, so that some are pushed into the next step; sound with holes, one of them 50
    steps long; what cannot be read is not a number."""
    video = SideTokens.regular(random(2 * seconds, 2, 2, 3), rate=2)
    times = torch.floor(torch.arange(2 * seconds) / 2 * 29.97) / 29.97
    video = SideTokens(video.x, times, video.spans, video.valid)
    audio = SideTokens.regular(random(10 * seconds, 1, 1, 6, seed=1), rate=10, start=0.7)
    valid = audio.valid.clone()
    valid[7::50], valid[100:350] = False, False
    x = audio.x.masked_fill(~valid[..., None], torch.nan)
    return {"video": video, "audio": SideTokens(x, audio.times, audio.spans, valid)}


def offline(resampler: Resampler, heard: dict[str, SideTokens], key_times: Tensor) -> SideBatch:
    with torch.no_grad():
        return resampler({sense: align([tokens], [key_times], "time") for sense, tokens in heard.items()})[0]


def between(tokens: SideTokens, start: float, end: float) -> SideTokens:
    return tokens.only((tokens.times >= start) & (tokens.times < end))


def listened(
    listening: StreamingResampler, heard: dict[str, SideTokens], pieces: dict[str, float], end: float = inf
) -> tuple[Tensor, Tensor]:
    """All that a stream gives whose senses come in pieces of so many seconds, until `end`."""
    found = []
    clock = dict.fromkeys(pieces, -1.0)
    while (sense := min(clock, key=lambda name: clock[name])) and clock[sense] < min(end, SECONDS + 2):
        until = min(clock[sense] + pieces[sense], end)
        found.append(listening.feed(sense, between(heard[sense], clock[sense], until), until))
        clock[sense] = until
    found = [each for each in [*found, listening.rest()] if each is not None]
    made, times = (torch.cat(each) for each in zip(*found, strict=True))
    return made, times


KEYS = torch.linspace(0, SECONDS, 9, dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [{"video": 0.7, "audio": 11.3}, {"video": 200.0, "audio": 3.0}], ids=str)
def test_a_recording_that_is_heard_piece_by_piece_gives_the_bits_of_the_whole(
    way: str, pieces: dict[str, float]
) -> None:
    resampler, heard = resampler_of(**WAYS[way]), recording()
    whole = offline(resampler, heard, KEYS)
    made, times = listened(StreamingResampler(resampler), heard, pieces)
    side = resampler.side(made, times, KEYS)
    assert torch.equal(made, whole.x[0, :, :, 0]) and torch.allclose(times, whole.times[0], rtol=0, atol=1e-9)
    assert torch.equal(side.index, whole.index) and torch.equal(side.mask, whole.mask)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("second", [3.1, 33.6, 41.0])
def test_at_any_moment_it_is_what_the_recording_up_to_then_gives(way: str, second: float) -> None:
    resampler, heard = resampler_of(**WAYS[way]), recording()
    made, _ = listened(StreamingResampler(resampler), heard, {"video": 1.0, "audio": 1.0}, end=second)
    short = {sense: between(tokens, -1, second) for sense, tokens in heard.items()}
    assert torch.equal(made, offline(resampler, short, KEYS).x[0, :, :, 0])


@pytest.mark.parametrize("way", WAYS)
def test_chunks_are_within_rounding_of_all_windows_at_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resampler, heard = resampler_of(**WAYS[way]), recording()
    chunks = offline(resampler, heard, KEYS).x
    monkeypatch.setattr("pave.fusion.qformer.WINDOWS", 10**6)
    once = offline(resampler, heard, KEYS).x
    assert chunks.shape == once.shape and (chunks - once).abs().max() <= 1e-5 * once.abs().max()


def test_what_is_finished_comes_at_once_and_its_tokens_are_forgotten() -> None:
    listening, heard = StreamingResampler(resampler_of()), recording(200)
    held, given = [], 0
    for second in range(200):
        for sense, tokens in heard.items():
            found = listening.feed(sense, between(tokens, second, second + 1), second + 1.0)
            given += 0 if found is None else len(found[0])
        assert given == (second + 1) // (2 * WINDOWS) * WINDOWS, "16 windows take 32 seconds"
        held.append(sum(len(each.tokens.times) for each in listening.senses.values() if each.tokens))
    assert max(held) <= (2 + 10) * (2 * WINDOWS + 1)


def test_a_sense_that_is_absent_or_ends_does_not_stop_the_others() -> None:
    resampler, heard = resampler_of(), recording()
    video, audio = heard["video"], between(heard["audio"], 0, 5)
    for sound in (None, audio):
        listening = StreamingResampler(resampler)
        assert listening.feed("audio", sound, inf) is None
        found = listening.feed("video", video, SECONDS)
        with torch.no_grad():
            sides = {"video": align([video], [KEYS], "time"), "audio": sound and align([sound], [KEYS], "time")}
            whole = resampler(sides)[0].x[0, :, :, 0]
        assert found is not None and torch.equal(found[0], whole[: 2 * WINDOWS])
        rest = listening.rest()
        assert rest is not None and torch.equal(rest[0], whole[2 * WINDOWS :])


def test_what_comes_late_or_is_on_no_clock_is_refused_and_loses_nothing() -> None:
    listening, heard = StreamingResampler(resampler_of()), recording()["audio"]
    assert listening.rest() is None
    listening.feed("audio", between(heard, 0, 9), 9.0)
    with pytest.raises(SignalError, match=r"audio comes late: all of it before 9 s .* of 8.75 s"):
        listening.feed("audio", between(heard, 8.7, 12), 12.0)
    with pytest.raises(SignalError, match="audio is a set"):
        listening.feed("audio", SideTokens(heard.x, heard.times + 9, heard.spans, heard.valid, "set"), 99.0)
    listening.feed("audio", between(heard, 9, 12), 12.0)
    again = StreamingResampler(listening.resampler)
    again.feed("audio", between(heard, 0, 12), 12.0)
    one, other = listening.rest(), again.rest()
    assert one is not None and other is not None and torch.equal(one[0], other[0])
