"""GLM-4.6V: like GLM-4.1V, with timestamps in tenths of seconds."""

from __future__ import annotations

from pave.bases.glm4v import Glm4v


class Glm46V(Glm4v):
    def clocked(self, seconds: float) -> str:
        return f"{seconds:.1f} seconds"


BASE = Glm46V
