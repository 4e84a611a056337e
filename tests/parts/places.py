"""Paths in a checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "tests" / "parts"
GOLDEN = ROOT / "tests" / "golden"
