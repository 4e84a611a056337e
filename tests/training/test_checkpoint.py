"""Claims about checkpoints: a run is restored entirely or not at all, and a failed save leaves the old checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small import full_disk
from torch import nn

from pave.errors import TrainingError
from pave.training.checkpoint import NAME, Best, Identity, State, read_checkpoint, values, write_checkpoint

ME = {"lora": {"r": 2, "target_modules": ("q", "k")}, "questions": "a1"}
LOSSES = [0.1 + 0.2, 1 / 3]  # neither has a short decimal form


class Trained:
    """Two parts of a patch and their optimiser; one parameter has never had a gradient, one only every second step."""

    def __init__(self, steps: int, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        fusion, lora, idle = (nn.Parameter(torch.randn(3, 5, generator=draw)) for _ in range(3))
        self.parameters = {"fusion": {"w": fusion}, "lora": {"q.A": lora, "q.B": idle}}
        self.optimiser = torch.optim.AdamW([fusion, lora, idle], lr=0.1)
        self.step(0, steps)

    def step(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            self.optimiser.zero_grad()
            self.parameters["fusion"]["w"].square().sum().backward()
            if step % 2:
                self.parameters["lora"]["q.A"].square().sum().backward()
            self.optimiser.step()

    def write(self, folder: Path, step: int) -> Path:
        best = Best(1, 0.5, values(self.parameters))
        state = State(step, LOSSES, {0: 6, 2: 9}, best)
        return write_checkpoint(folder, state, self.parameters, self.optimiser, ME)

    def read(self, folder: Path, identity: Identity = ME) -> State | None:
        return read_checkpoint(folder, self.parameters, self.optimiser, identity)

    def values(self) -> list[torch.Tensor]:
        return [p.detach().clone() for part in self.parameters.values() for p in part.values()]


def same(one: Trained, other: Trained) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_restored_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, first, second = Trained(9), Trained(4), Trained(0, seed=1)
    first.write(tmp_path, 4)
    state = second.read(tmp_path)
    assert state is not None and (state.step, state.losses, state.lengths) == (4, LOSSES, {0: 6, 2: 9})
    assert state.best is not None and (state.best.step, state.best.accuracy) == (1, 0.5)
    assert all(torch.equal(value, state.best.values[name]) for name, value in values(first.parameters).items())
    assert same(first, second)
    second.step(4, 9)
    assert same(whole, second)


def test_without_the_moments_the_bits_would_differ(tmp_path: Path) -> None:
    whole, second = Trained(9), Trained(0, seed=1)
    Trained(4).write(tmp_path, 4)
    second.read(tmp_path)
    second.optimiser.state.clear()
    second.step(4, 9)
    assert not same(whole, second)


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    files = [Trained(3, seed).write(tmp_path / name, 3).read_bytes() for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert files[0] == files[1] != files[2]


def test_without_a_checkpoint_the_run_starts_at_step_0(tmp_path: Path) -> None:
    fresh, run = Trained(0), Trained(0)
    assert run.read(tmp_path) is None and same(fresh, run) and not run.optimiser.state


def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    Trained(2).write(tmp_path, 2)
    before = (tmp_path / NAME).read_bytes()
    with full_disk(), pytest.raises(TrainingError, match=r"cannot be written.*at step 4.*make room.*--resume"):
        Trained(4).write(tmp_path, 4)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert (tmp_path / NAME).read_bytes() == before
    state = Trained(0).read(tmp_path)
    assert state is not None and state.step == 2


def test_another_run_is_refused(tmp_path: Path) -> None:
    Trained(2).write(tmp_path, 2)
    fresh, run = Trained(0), Trained(0)
    with pytest.raises(TrainingError, match=r"\(lora.r: 2 there, 3 here; seed: None there, 1 here\); give another"):
        run.read(tmp_path, {**ME, "lora": {**ME["lora"], "r": 3}, "seed": 1})
    assert same(fresh, run)
    run.parameters["lora"]["q.C"] = nn.Parameter(torch.zeros(1))
    with pytest.raises(TrainingError, match="another recipe"):
        run.read(tmp_path)


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    whole = Trained(2).write(tmp_path, 2).read_bytes()
    fresh = Trained(0)
    for place in [*range(0, 200, 20), *range(200, len(whole), 41), len(whole) - 1]:
        broken = bytearray(whole)
        broken[place] ^= 1
        (tmp_path / NAME).write_bytes(broken)
        run = Trained(0)
        with pytest.raises(TrainingError, match="start without --resume"):
            run.read(tmp_path)
        assert same(fresh, run) and not run.optimiser.state


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = Trained(2).write(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match="delete it and start without --resume"):
        Trained(0).read(tmp_path)


def test_writing_does_not_change_the_run(tmp_path: Path) -> None:
    run = Trained(3)
    state = copy.deepcopy(run.optimiser.state_dict())
    before = run.values()
    run.write(tmp_path, 3)
    assert str(state) == str(run.optimiser.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, run.values(), strict=True))
