"""The benchmark of training steps for a GPU also runs on a CPU, in all its ways."""

import sys

import pytest
import torch
from places import ROOT

from pave.training.ranks import ALONE

sys.path.append(str(ROOT / "benchmarks"))
import training_size


@pytest.mark.parametrize("stored", training_size.STORED)
def test_every_way_trains_the_patch_in_one_round(stored: str) -> None:
    kind, _ = training_size.STORED[stored]
    if kind:
        pytest.importorskip({"int8": "torchao", "nf4": "bitsandbytes"}[kind])
    torch.manual_seed(0)
    model, features = training_size.made("small", stored, 1, ALONE, False)
    (attached,) = model.attached()
    for name, step in training_size.stepping(model, features).items():
        before = [each.detach().clone() for each in attached.parameters()]
        step()
        changed = [not torch.equal(*pair) for pair in zip(before, attached.parameters(), strict=True)]
        assert sum(changed) > len(changed) / 2, name


def test_a_round_has_figures_of_every_way() -> None:
    found = training_size.measure("small", "bfloat16", 1, 1, ALONE, False)
    assert found.keys() == {"cached", "recomputed", "per sample"} and found["per sample"]["times per sample"] == 1
    assert all(each["questions a second, each process"] > 0 for each in found.values())
