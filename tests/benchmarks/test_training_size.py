"""The benchmark of steps for a GPU also runs on a CPU, in all its ways."""

import sys

import pytest
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import training_size

from pave.training.ranks import ALONE


@pytest.mark.parametrize("stored", training_size.STORED)
def test_every_way_is_measured_in_one_round(stored: str) -> None:
    package = {"int8": "torchao", "nf4": "bitsandbytes"}
    if stored in package:
        pytest.importorskip(package[stored])
    found = training_size.measure("small", stored, 1, 1, ALONE, divided=False)
    assert found.keys() == {"cached", "recomputed", "per sample"}
    assert found["per sample"]["times per sample"] == 1 < found["cached"]["times per sample"]
