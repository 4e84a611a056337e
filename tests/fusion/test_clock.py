"""Claims about the common clock of senses: every token in its step and slot, windows for every step, and which of them
a key frame may read."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from pave.config import ResamplerConfig
from pave.errors import RecipeError, SignalError
from pave.fusion.align import align
from pave.fusion.clock import Clock, nearest_windows, refuse_overflow, steps_until, synchronise, windows_before
from pave.sidechannel import SideBatch, SideTokens

CONFIG = ResamplerConfig(window=5)


def sense(times: Tensor, grid: int = 1, valid: Tensor | None = None, keys: int = 4) -> SideBatch:
    """Side tokens of one channel at these seconds."""
    x = torch.zeros(len(times), grid, grid, 1)
    valid = torch.ones(x.shape[:3], dtype=torch.bool) if valid is None else valid
    row = SideTokens(x, times, torch.stack([times, times], -1), valid)
    return align([row], [torch.arange(float(keys))], "time")


def regular(count: int, rate: float, start: float = 0.0) -> Tensor:
    return start + (torch.arange(count, dtype=torch.float64) + 0.5) / rate


def clock_of(count: int, window: int, stride: int | None = None, start: float = 0.0) -> Clock:
    return Clock(start, count, 2.0, window, stride or window, {})


def as_lists(index: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(index, mask, strict=True)]


def test_sound_at_50_hz_fills_25_slots_of_a_step_of_half_a_second() -> None:
    """Frame i in step i // 25 and slot i % 25; the last step may be short."""
    clock = synchronise({"audio": sense(regular(113, 50))}, CONFIG)
    take, put = clock.places["audio"]
    assert (clock.start, clock.count, clock.windows) == (0.0, 5, 1)
    assert torch.equal(take, torch.arange(113)) and torch.equal(put, torch.arange(113))


@pytest.mark.parametrize("rate", [10, 24, 30])
def test_tokens_of_any_rate_are_placed_by_their_times(rate: int) -> None:
    times = regular(3 * rate, rate)
    _, put = synchronise({"audio": sense(times)}, CONFIG).places["audio"]
    assert torch.equal(put // 25, (2 * times).floor().long()) and len(put.unique()) == len(put)
    assert set((put % 25).tolist()) == set(range(-(-rate // 2)))


def test_senses_on_two_clocks_are_refused_and_late_ones_on_one_clock_are_not() -> None:
    audio = sense(regular(100, 50))
    video = sense(regular(20, 2, start=3000.0))
    assert synchronise({"audio": audio, "video": video}, CONFIG).count == 6020
    message = r"audio is at 0\.01 to 1\.99 s, video is at 5000\.25 to .* a gap of more than 3600 s; .* one clock"
    with pytest.raises(SignalError, match=message):
        synchronise({"audio": audio, "video": sense(regular(20, 2, start=5000.0))}, CONFIG)


@pytest.mark.parametrize(
    ("rate", "grid", "message"),
    [
        (50.0, (1, 2), "audio has 2 tokens 50 times a second, up to 50 in a step of 0.5 s; set resampler.slots=50"),
        (0.0, (6, 6), "audio has 36 tokens for each key frame, up to 36 in a step of 0.5 s; set resampler.slots=36"),
    ],
)
def test_the_error_about_too_few_slots_says_how_many_are_needed(
    rate: float, grid: tuple[int, int], message: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        refuse_overflow("audio", rate, grid, CONFIG)
    assert message in str(refused.value)
    n = max(1, round(rate / CONFIG.rate)) * grid[0] * grid[1]
    refuse_overflow("audio", rate, grid, CONFIG.model_copy(update={"slots": n}))


def test_the_tokens_of_a_picture_fill_the_slots_of_its_step_beside_the_sound() -> None:
    pictures = sense(torch.arange(4) / 2, grid=5)
    clock = synchronise({"video": pictures, "audio": sense(regular(100, 50))}, CONFIG)
    assert all(torch.equal(clock.places[name][1], torch.arange(100)) for name in ("video", "audio"))


def test_a_picture_slightly_early_does_not_displace_another() -> None:
    """Frames of 29.97 per second, sampled every half second: each is slightly older than its instant."""
    times = torch.floor(torch.arange(40) / 2 * 29.97) / 29.97
    assert (2 * times).floor().long().unique().numel() < 40, "two of them are in one step"
    _, put = synchronise({"video": sense(times, grid=5)}, CONFIG).places["video"]
    assert torch.equal(put, torch.arange(40 * 25))


def test_the_tokens_of_a_single_picture_are_repeated_in_every_step_of_the_sound() -> None:
    picture, sound = sense(torch.zeros(1), grid=2, keys=1), sense(regular(70, 50), keys=1)
    clock = synchronise({"video": picture, "audio": sound}, CONFIG)
    take, put = clock.places["video"]
    assert clock.count == 3
    assert take.tolist() == [0, 1, 2, 3] * 3 and put.tolist() == [25 * j + i for j in range(3) for i in range(4)]


def test_a_single_step_of_sound_in_a_video_is_placed_once() -> None:
    clock = synchronise({"video": sense(torch.arange(6) / 2, grid=2), "audio": sense(torch.tensor([1.2]))}, CONFIG)
    assert [each.tolist() for each in clock.places["audio"]] == [[0], [50]]


def test_invalid_tokens_get_no_slot_and_do_not_lengthen_the_clip() -> None:
    valid = torch.ones(1500, 1, 1, dtype=torch.bool)
    valid[500:] = False  # ten seconds of sound in thirty of padding
    valid[7] = False
    clock = synchronise({"audio": sense(regular(1500, 50), valid=valid)}, CONFIG)
    assert clock.count == 20 and clock.windows == 4
    assert clock.places["audio"][1].tolist() == [i for i in range(500) if i != 7]


def test_a_clip_may_begin_at_any_second_and_with_any_sense() -> None:
    early = sense(regular(60, 50, start=-0.2))
    clock = synchronise({"video": sense(torch.arange(3) / 2, grid=2), "audio": early}, CONFIG)
    assert clock.start == -0.5 and clock.count == 4
    assert int(clock.places["video"][1][0]) == 25 and clock.places["audio"][1][:11].tolist() == [*range(10), 25]
    late = synchronise({"audio": sense(regular(60, 50, start=3600.0))}, CONFIG)
    assert late.start == 3600 and torch.equal(late.places["audio"][1], torch.arange(60))


def test_tokens_in_any_order_are_placed_in_order_of_time() -> None:
    times = torch.tensor([0.9, 0.1, 0.6, 0.2])
    take, put = synchronise({"audio": sense(times)}, CONFIG).places["audio"]
    assert dict(zip(take.tolist(), put.tolist(), strict=True)) == {1: 0, 3: 1, 2: 25, 0: 26}


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(SignalError, match=r"up to 50 tokens of audio are in one step of 0.5 s, which has 25 slots"):
        synchronise({"audio": sense(regular(300, 100))}, CONFIG)
    with pytest.raises(SignalError, match=r"a time step of video has 36 tokens, a step of the resampler 25 slots"):
        synchronise({"video": sense(torch.zeros(1), grid=6)}, CONFIG)
    row = SideTokens(torch.zeros(3, 1, 1, 1), torch.arange(3), torch.zeros(3, 2), torch.ones(3, 1, 1).bool(), "set")
    with pytest.raises(SignalError, match="views is a set, whose tokens have no times"):
        synchronise({"views": align([row], [torch.arange(4.0)], "time")}, CONFIG)


@pytest.mark.parametrize(
    ("count", "stride", "windows"),
    [(1, 5, 1), (5, 5, 1), (6, 5, 2), (13, 5, 3), (13, 2, 5), (6, 1, 2), (4, 1, 1), (14, 3, 4)],
)
def test_windows_hold_every_step_and_none_is_all_padding(count: int, stride: int, windows: int) -> None:
    clock = clock_of(count, 5, stride)
    steps = clock.steps
    assert clock.windows == windows == len(steps) == len(clock.starts)
    assert set(range(count)) <= set(steps.flatten().tolist()) and (steps < count).any(-1).all()
    assert torch.equal(clock.starts * clock.rate, steps[:, 0].double())


# Key frames


@pytest.mark.parametrize("t", [8, 30, 31, 60, 200])
def test_a_key_frame_reads_its_own_window(t: int) -> None:
    """FAVOR's rule: window floor(2 τ / K), but at most the last one."""
    clock, key_times = clock_of(60, 10), torch.linspace(0, 30, t, dtype=torch.float64)
    own = (2 * key_times / 10).floor().clamp(max=5)
    assert as_lists(*nearest_windows(clock.middles, key_times)) == [[int(window)] for window in own]


def test_few_key_frames_divide_all_windows_among_them() -> None:
    clock, key_times = clock_of(7200, 10), torch.linspace(0, 3600, 32, dtype=torch.float64)
    read = as_lists(*nearest_windows(clock.middles, key_times))
    assert sorted(chain(*read)) == list(range(720)) and min(map(len, read)) >= 11


@pytest.mark.parametrize("t", [3, 8, 32, 100])
def test_a_key_frame_reads_no_state_later_than_its_own_step(t: int) -> None:
    clock, key_times = clock_of(60, 10, start=1.0), torch.linspace(0, 40, t, dtype=torch.float64)
    own = ((key_times - 1) * 2).floor().long().clamp(max=59).tolist()
    read = as_lists(*steps_until(clock.start + (torch.arange(60) + 0.5) / 2, key_times, 2.0))
    for i, (steps, last) in enumerate(zip(read, own, strict=True)):
        before = own[i - 1] if i else -1
        assert steps == ([] if last < 0 else list(range(max(0, before + 1), last + 1)) or [last])
    assert [] in read and set(chain(*read)) == set(range(60))


@pytest.mark.parametrize("t", [1, 4, 7, 100])
def test_a_window_is_inserted_once_before_the_first_key_frame_that_does_not_precede_it(t: int) -> None:
    clock, key_times = clock_of(60, 10), torch.linspace(0, 26, t, dtype=torch.float64)
    read = as_lists(*windows_before(clock.starts, key_times))
    assert list(chain(*read)) == list(range(6))
    for i, windows in enumerate(read):
        for window in windows:
            assert i == t - 1 or key_times[i] >= 5 * window
            assert i == 0 or key_times[i - 1] < 5 * window
