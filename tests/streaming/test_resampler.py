"""Claims about streaming resamplers: bit for bit the outputs of the whole recording, for any pieces, in bounded
memory; late tokens are refused."""

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


def randomised(module: nn.Module) -> Any:
    torch.manual_seed(0)
    for name, weight in module.named_parameters():
        nn.init.normal_(weight, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return module.eval()


def resampler_of(**changes: Any) -> Resampler:
    shape = {"slots": 5, "window": 4, "queries": 4, "width": 16, "heads": 2}
    return randomised(build_resampler(ResamplerConfig.model_validate(shape | changes), "add", SENSES))


def recording(seconds: int = SECONDS) -> dict[str, SideTokens]:
    """Pictures slightly early, so that some are pushed into the next step; sound with gaps, one of them 50 steps long;
    invalid tokens are NaN."""
    video = SideTokens.regular(random(2 * seconds, 2, 2, 3), rate=2)
    times = torch.floor(torch.arange(2 * seconds) / 2 * 29.97) / 29.97
    video = SideTokens(video.x, times, video.spans, video.valid)
    audio = SideTokens.regular(random(10 * seconds, 1, 1, 6, seed=1), rate=10, start=0.7)
    valid = audio.valid.clone()
    valid[7::50], valid[100:350] = False, False
    x = audio.x.masked_fill(~valid[..., None], torch.nan)
    return {"video": video, "audio": SideTokens(x, audio.times, audio.spans, valid)}


def offline(resampler: Resampler, senses: dict[str, SideTokens], key_times: Tensor) -> SideBatch:
    with torch.no_grad():
        return resampler({sense: align([tokens], [key_times], "time") for sense, tokens in senses.items()})[0]


def between(tokens: SideTokens, start: float, end: float) -> SideTokens:
    return tokens.only((tokens.times >= start) & (tokens.times < end))


def streamed(
    stream: StreamingResampler, senses: dict[str, SideTokens], pieces: dict[str, float], end: float = inf
) -> tuple[Tensor, Tensor]:
    """All outputs of a stream whose senses arrive in pieces of so many seconds, until `end`."""
    outputs = []
    clock = dict.fromkeys(pieces, -1.0)
    while (sense := min(clock, key=lambda name: clock[name])) and clock[sense] < min(end, SECONDS + 2):
        until = min(clock[sense] + pieces[sense], end)
        outputs.append(stream.feed(sense, between(senses[sense], clock[sense], until), until))
        clock[sense] = until
    outputs = [each for each in [*outputs, stream.unfinished()] if each is not None]
    x, times = (torch.cat(each) for each in zip(*outputs, strict=True))
    return x, times


KEYS = torch.linspace(0, SECONDS, 9, dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [{"video": 0.7, "audio": 11.3}, {"video": 200.0, "audio": 3.0}], ids=str)
def test_a_recording_fed_piece_by_piece_gives_the_bits_of_the_whole(way: str, pieces: dict[str, float]) -> None:
    resampler, senses = resampler_of(**WAYS[way]), recording()
    whole = offline(resampler, senses, KEYS)
    x, times = streamed(StreamingResampler(resampler), senses, pieces)
    side = resampler.side(x, times, KEYS)
    assert torch.equal(x, whole.x[0, :, :, 0]) and torch.allclose(times, whole.times[0], rtol=0, atol=1e-9)
    assert torch.equal(side.index, whole.index) and torch.equal(side.mask, whole.mask)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("second", [3.1, 33.6, 41.0])
def test_at_any_moment_the_outputs_are_those_of_the_recording_up_to_then(way: str, second: float) -> None:
    resampler, senses = resampler_of(**WAYS[way]), recording()
    x, _ = streamed(StreamingResampler(resampler), senses, {"video": 1.0, "audio": 1.0}, end=second)
    short = {sense: between(tokens, -1, second) for sense, tokens in senses.items()}
    assert torch.equal(x, offline(resampler, short, KEYS).x[0, :, :, 0])


@pytest.mark.parametrize("way", WAYS)
def test_chunks_are_within_rounding_of_one_batch_of_all_windows(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resampler, senses = resampler_of(**WAYS[way]), recording()
    chunks = offline(resampler, senses, KEYS).x
    monkeypatch.setattr("pave.fusion.qformer.WINDOWS", 10**6)
    once = offline(resampler, senses, KEYS).x
    assert chunks.shape == once.shape and (chunks - once).abs().max() <= 1e-5 * once.abs().max()


def test_finished_outputs_are_returned_immediately_and_their_tokens_dropped() -> None:
    stream, senses = StreamingResampler(resampler_of()), recording(200)
    held, count = [], 0
    for second in range(200):
        for sense, tokens in senses.items():
            outputs = stream.feed(sense, between(tokens, second, second + 1), second + 1.0)
            count += 0 if outputs is None else len(outputs[0])
        assert count == (second + 1) // (2 * WINDOWS) * WINDOWS, "16 windows take 32 seconds"
        held.append(sum(len(each.tokens.times) for each in stream.senses.values() if each.tokens))
    assert max(held) <= (2 + 10) * (2 * WINDOWS + 1)


def test_a_sense_that_is_absent_or_ends_does_not_stop_the_others() -> None:
    resampler, senses = resampler_of(), recording()
    video, audio = senses["video"], between(senses["audio"], 0, 5)
    for sound in (None, audio):
        stream = StreamingResampler(resampler)
        assert stream.feed("audio", sound, inf) is None
        outputs = stream.feed("video", video, SECONDS)
        with torch.no_grad():
            sides = {"video": align([video], [KEYS], "time"), "audio": sound and align([sound], [KEYS], "time")}
            whole = resampler(sides)[0].x[0, :, :, 0]
        assert outputs is not None and torch.equal(outputs[0], whole[: 2 * WINDOWS])
        rest = stream.unfinished()
        assert rest is not None and torch.equal(rest[0], whole[2 * WINDOWS :])


def test_late_tokens_and_sets_are_refused_and_lose_nothing() -> None:
    stream, audio = StreamingResampler(resampler_of()), recording()["audio"]
    assert stream.unfinished() is None
    stream.feed("audio", between(audio, 0, 9), 9.0)
    with pytest.raises(SignalError, match=r"audio comes late: .* up to 9 s, .* at 8.75 s"):
        stream.feed("audio", between(audio, 8.7, 12), 12.0)
    with pytest.raises(SignalError, match="audio is a set"):
        stream.feed("audio", SideTokens(audio.x, audio.times + 9, audio.spans, audio.valid, "set"), 99.0)
    stream.feed("audio", between(audio, 9, 12), 12.0)
    again = StreamingResampler(stream.resampler)
    again.feed("audio", between(audio, 0, 12), 12.0)
    one, other = stream.unfinished(), again.unfinished()
    assert one is not None and other is not None and torch.equal(one[0], other[0])
