"""What my-sense promises. Run it with pytest; where a promise of yours differs, change it here first."""

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


def test_it_says_what_it_is_before_it_reads_anything() -> None:
    spec = load_encoder("my-sense").spec
    assert (spec.name, spec.sense, spec.dim, spec.rate) == ("my-sense", "my_sense", 6, 10)
    assert load_encoder("my-sense", **spec.options).spec == spec
    assert load_encoder("my-sense", rate=5).spec.preprocessing != spec.preprocessing


def test_tokens_fit_the_spec_and_come_again_to_the_last_bit() -> None:
    side = tokens(ROWS)
    assert side.x.shape == (25, 1, 1, 6) and side.spans[-1].tolist() == [2.4, 2.5]
    assert torch.equal(side.x, tokens(ROWS).x)


def test_a_token_has_read_its_own_time_and_nothing_else() -> None:
    moved: Tensor = ROWS.clone()
    moved[123] += 1  # at 1.23 s
    changed = (tokens(moved).x != tokens(ROWS).x).flatten(1).any(1).nonzero().tolist()
    assert changed == [[12]]


def test_no_signal_is_none_and_zeros_are_a_signal() -> None:
    assert load_encoder("my-sense").encode(Clip()) is None
    assert tokens(torch.zeros(100, 3)).valid.all()


def test_a_file_gives_what_its_rows_give(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    assert torch.equal(tokens(str(tmp_path / "rows.npy")).x, tokens(ROWS).x)


@pytest.mark.parametrize("rows", [torch.zeros(9), torch.zeros(9, 4), torch.full((9, 3), torch.nan), "nowhere.npy"])
def test_what_cannot_be_read_is_refused(rows: object) -> None:
    with pytest.raises(SignalError, match=r"my_sense: .*; give"):
        tokens(rows)


@pytest.mark.parametrize("options", [{"rate": 7}, {"dim": 0}, {"hertz": "100"}])
def test_options_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(EncoderError, match="a rate that divides hertz"):
        load_encoder("my-sense", **options)
