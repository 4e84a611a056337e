"""Claims about the encoder my-sense. Run with pytest; when you change the encoder, change its claim here first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pave.encoder import load_encoder
from pave.errors import EncoderError, SignalError
from pave.media import Clip
from pave.sidechannel import SideTokens

ROWS = torch.randn(257, 3, generator=torch.Generator().manual_seed(0))  # 2.57 s at 100 rows per second


def tokens(rows: object) -> SideTokens:
    side = load_encoder("my-sense").encode(Clip(signals={"my_sense": rows}))
    assert side is not None
    return side


def test_the_spec_is_available_before_any_clip_is_read() -> None:
    spec = load_encoder("my-sense").spec
    assert (spec.name, spec.sense, spec.dim, spec.rate) == ("my-sense", "my_sense", 6, 10)
    assert load_encoder("my-sense", **spec.options).spec == spec
    assert load_encoder("my-sense", rate=5).spec.preprocessing != spec.preprocessing


def test_tokens_match_the_spec_and_are_reproducible_bit_for_bit() -> None:
    side = tokens(ROWS)
    assert side.x.shape == (25, 1, 1, 6) and side.spans[-1].tolist() == [2.4, 2.5]
    assert torch.equal(side.x, tokens(ROWS).x)


def test_a_token_depends_on_its_own_time_span_only() -> None:
    moved: Tensor = ROWS.clone()
    moved[123] += 1  # at 1.23 s
    changed = (tokens(moved).x != tokens(ROWS).x).flatten(1).any(1).nonzero().tolist()
    assert changed == [[12]]


def test_an_absent_signal_gives_none_and_zeros_are_a_signal() -> None:
    assert load_encoder("my-sense").encode(Clip()) is None
    assert tokens(torch.zeros(100, 3)).valid.all()


def test_a_file_and_its_rows_give_equal_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    assert torch.equal(tokens(str(tmp_path / "rows.npy")).x, tokens(ROWS).x)


@pytest.mark.parametrize("rows", [torch.zeros(9), torch.zeros(9, 4), torch.full((9, 3), torch.nan), "nowhere.npy"])
def test_unreadable_signals_are_refused(rows: object) -> None:
    with pytest.raises(SignalError, match=r"my_sense: .*; pass"):
        tokens(rows)


@pytest.mark.parametrize("options", [{"rate": 7}, {"dim": 0}, {"hertz": "100"}])
def test_invalid_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(EncoderError, match="a rate that divides hertz"):
        load_encoder("my-sense", **options)
