"""Alignment assigns each token to a key frame by the rules, and bad signals are refused with their numbers."""

from __future__ import annotations

import pytest
import torch

from pave.errors import SignalError
from pave.fusion.align import align, segments_by_index, segments_by_time
from pave.fusion.segments import Segments
from pave.sidechannel import SideTokens

KEYS = torch.tensor([0.0, 1.0, 3.0, 3.5])


def steps_of(index: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(index, mask, strict=True)]


def test_a_segment_is_bounded_by_the_midpoints_between_key_frames():
    times = torch.tensor([-1.0, 0.0, 0.49, 0.5, 1.9, 2.0, 3.24, 3.25, 99.0])
    assert steps_of(*segments_by_time(times, KEYS)) == [[0, 1, 2], [3, 4], [5, 6], [7, 8]]


def test_segments_by_time_match_the_definition_on_random_times():
    generator = torch.Generator().manual_seed(0)
    for steps in (1, 5, 80):
        times = torch.rand(steps, generator=generator, dtype=torch.float64) * 9  # in no order
        keys = (torch.rand(8, generator=generator, dtype=torch.float64) * 9).sort().values
        for i, got in enumerate(steps_of(*segments_by_time(times, keys))):
            low = (keys[i - 1] + keys[i]) / 2 if i else -torch.inf
            high = (keys[i] + keys[i + 1]) / 2 if i < 7 else torch.inf
            want = [j for j in range(steps) if low <= times[j] < high]
            assert got == (want or [int((times - keys[i]).abs().argmin())])


def test_an_empty_segment_borrows_the_nearest_token_and_the_earlier_of_two():
    times = torch.tensor([0.0, 2.0])
    assert steps_of(*segments_by_time(times, torch.tensor([0.0, 0.9, 1.0, 1.1]))) == [[0], [0], [0], [1]]
    assert steps_of(*segments_by_time(times.flip(0), torch.tensor([0.0, 0.9, 1.0, 1.1]))) == [[1], [1], [1], [0]]


def test_two_key_frames_at_the_same_time_both_get_a_token():
    index, mask = segments_by_time(torch.tensor([0.9, 1.1]), torch.tensor([1.0, 1.0]))
    assert steps_of(index, mask) == [[0], [1]]


@pytest.mark.parametrize(
    ("steps", "counts"),
    [(120, [4] * 24 + [3] * 8), (240, [8] * 16 + [7] * 16), (33, [2] + [1] * 31), (64, [2] * 32)],
)
def test_segments_by_index_match_the_split_of_the_pave_papers_authors(steps, counts):
    index, mask = segments_by_index(steps, 32)
    assert mask.sum(-1).tolist() == counts
    assert index[mask].tolist() == list(range(steps))


def test_fewer_steps_than_key_frames_are_interpolated_from_the_first_to_the_last():
    batch = align([tokens(3), tokens(1), tokens(9)], [torch.arange(5.0)] * 3, "index")
    assert batch.blend is not None
    after, share = batch.blend
    place = torch.lerp(batch.index[..., 0].double(), after[..., 0].double(), share[..., 0])
    assert place[:2].tolist() == [[0, 0.5, 1, 1.5, 2], [0, 0, 0, 0, 0]]
    assert torch.equal(after[2], batch.index[2])


def test_key_frames_out_of_order_or_missing_are_refused():
    with pytest.raises(SignalError, match="in order of time"):
        segments_by_time(torch.zeros(3), torch.tensor([1.0, 0.0]))
    with pytest.raises(SignalError, match="no key frames"):
        segments_by_time(torch.zeros(3), torch.zeros(0))
    with pytest.raises(SignalError, match="no key frames"):
        segments_by_index(3, 0)


def tokens(steps: int, rate: float = 4.0, channels: int = 3, seed: int = 0) -> SideTokens:
    return SideTokens.regular(torch.randn(steps, channels, generator=torch.Generator().manual_seed(seed)), rate=rate)


def test_regular_tokens_have_centre_times_and_spans():
    side = SideTokens.regular(torch.zeros(3, 5), rate=4, start=1.0)
    assert side.x.shape == (3, 1, 1, 5)
    assert side.times.tolist() == [1.125, 1.375, 1.625]
    assert side.spans[1].tolist() == [1.25, 1.5]


def test_a_token_that_is_not_finite_is_an_error_with_its_time():
    x = torch.zeros(8, 2)
    x[5] = torch.nan
    with pytest.raises(SignalError, match=r"1 of 8 side tokens are not finite, the first at step 5 \(1\.38 s\)"):
        SideTokens.regular(x, rate=4)


def test_an_invalid_token_may_have_any_value_and_is_never_borrowed():
    good = tokens(8)
    x, valid = good.x.clone(), good.valid.clone()
    x[3:5], valid[3:5] = torch.inf, False
    side = align([SideTokens(x, good.times, good.spans, valid)], [torch.tensor([0.0, 1.0, 1.1, 2.0])], "time")
    assert side.x.isfinite().all()
    assert side.valid is not None
    assert side.valid[0, :, 0, 0].tolist() == valid[:, 0, 0].tolist()
    assert not set(side.index[side.mask].tolist()) & {3, 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4, 3)}, r"\(τ h w c\) floats"),
        ({"x": torch.zeros(4, 1, 1, 3).long()}, "int64"),
        ({"times": torch.zeros(3)}, r"times of 4 side tokens must have shape \(4,\), got \(3,\)"),
        ({"times": torch.full((4,), torch.nan)}, "not a finite number of seconds"),
        ({"valid": torch.ones(4, 1, 1)}, "valid must be bool"),
    ],
)
def test_side_tokens_of_the_wrong_shape_are_refused(change, message):
    parts = {"x": tokens(4).x, "times": tokens(4).times, "spans": tokens(4).spans, "valid": tokens(4).valid}
    with pytest.raises(SignalError, match=message):
        SideTokens(**(parts | change))


@pytest.mark.parametrize("rule", ["time", "index"])
def test_each_row_of_a_ragged_batch_is_aligned_as_if_alone(rule):
    rows = [tokens(9), None, tokens(3), tokens(30)]
    keys = [torch.linspace(0, 2, n) for n in (4, 5, 7, 2)]
    batch = align(rows, keys, rule)
    assert batch.present.tolist() == [True, False, True, True]
    for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
        alone = align([row], [key], rule)
        t = len(key)
        assert steps_of(batch.index[i, :t], batch.mask[i, :t]) == steps_of(alone.index[0], alone.mask[0])
        assert not batch.mask[i, t:].any()
        if row is not None:
            assert torch.equal(batch.x[i, : len(row.x)], row.x)


def test_a_channel_without_a_valid_token_is_absent():
    silent = tokens(4)
    nothing = SideTokens(silent.x, silent.times, silent.spans, torch.zeros_like(silent.valid))
    batch = align([nothing, tokens(0)], [KEYS, KEYS], "time")
    assert batch.steps.tolist() == [0, 0]
    assert not batch.mask.any()


def test_layout_promises_only_what_holds():
    keys = torch.arange(4) + 0.5
    assert align([tokens(16), tokens(16)], [keys] * 2, "index").layout == "even"
    assert align([tokens(16)], [keys], "time").layout == "even"
    assert align([tokens(16), tokens(8)], [keys] * 2, "index").layout == "full"
    borrowing = torch.tensor([0.4, 0.5, 0.6, 1.5])
    assert align([tokens(2, rate=1)], [borrowing], "time").layout == "dense"
    assert align([tokens(16), None], [keys] * 2, "index").layout == "ragged"
    assert align([tokens(16)] * 2, [keys, keys[:2]], "index").layout == "ragged"


def test_only_the_index_rule_interpolates():
    assert align([tokens(3)], [KEYS], "index").blend is not None
    assert align([tokens(4)], [KEYS], "index").blend is None
    assert align([tokens(3)], [KEYS], "time").blend is None


def test_a_set_falls_back_to_the_index_rule_and_has_no_order():
    row = tokens(6)
    unordered = SideTokens(row.x, torch.zeros(6), row.spans, row.valid, kind="set")
    for steps in (6, 2):
        batch = align(
            [SideTokens(*(part[:steps] for part in (unordered.x, row.times, row.spans, row.valid)), kind="set")] * 2,
            [torch.tensor([0.0, 1.0, 5.0]), torch.tensor([3.0, 4.0, 9.0])],
            "time",
        )
        by_index = align([tokens(steps)] * 2, [KEYS[:3]] * 2, "index")
        assert torch.equal(batch.index, by_index.index)
        assert (Segments(batch).seconds() == 0).all() and (Segments(by_index).seconds() != 0).any()
    with pytest.raises(SignalError, match="with and without times"):
        align([unordered, row], [KEYS, KEYS], "time")


def test_encoders_cannot_be_mixed_in_one_batch():
    with pytest.raises(SignalError, match="differ inside one batch"):
        align([tokens(4), tokens(4, channels=5)], [KEYS, KEYS], "time")


def test_moving_a_batch_casts_tokens_but_not_seconds():
    moved = align([tokens(9)], [KEYS], "time").to("cpu", torch.bfloat16)
    assert (moved.x.dtype, moved.times.dtype, moved.key_times.dtype) == (torch.bfloat16, torch.float64, torch.float64)
