"""What several files of these tests ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import awaken, make_config

from pave.model.patched import PatchedModel, load


@pytest.fixture(scope="module")
def model(workshop: Path) -> PatchedModel:
    """A base with a patch that has a strong effect on any sound."""
    model = load(workshop / "base", device="cpu")
    model.attach("ears", make_config(model.host))
    awaken(model, "ears", scale=1.0)
    return model
