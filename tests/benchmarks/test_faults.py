"""A sample of `benchmarks/faults.py`, which runs the same with many more tries."""

import sys
from pathlib import Path

import pytest
from places import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from faults import PARTS


@pytest.mark.parametrize("part", PARTS)
def test_no_fault_damages_a_patch_unnoticed(part: str, tmp_path: Path) -> None:
    tried, few, _ = PARTS[part]
    figures = tried(few, tmp_path)
    assert not [name for name in figures if name.startswith("BAD")], figures
    assert figures.keys() & {"whole", "file: whole", "unharmed", "fine"}, "some tries must succeed"
