"""GLM-4.6V: as GLM-4.1V, with tenths of seconds behind each step."""

from __future__ import annotations

from pave.bases.glm4v import Glm4v


class Glm46V(Glm4v):
    def clocked(self, seconds: float) -> str:
        return f"{seconds:.1f} seconds"


BASE = Glm46V
