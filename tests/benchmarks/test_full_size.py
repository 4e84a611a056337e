"""The benchmark for a GPU also runs on a CPU, in all its variants."""

import sys

import pytest
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import full_size


def test_every_variant_is_measured_in_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "NEW", 2)
    found = full_size.measure("small", "official, float32", 1, (2,), 2)
    assert all(milliseconds > 0 for milliseconds in found["life"].values()) and "swap, shrunk" in found["life"]
    asked = found["batch 2"]
    ways = {"base", "patch", "fusion", "LoRA", "shrunk", "mixed"}
    assert asked["prefill"].keys() == asked["a further token"].keys() == ways
    assert all(each["milliseconds"] > 0 for each in asked["prefill"].values())
    assert asked["prefill"]["base"]["beyond the base, %"] == 0
