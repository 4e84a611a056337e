"""GLM-4.5V: as GLM-4.1V, with experts in its language model."""

from pave.bases.glm4v import Glm4v

BASE = Glm4v
