"""GLM-4.5V: like GLM-4.1V, with a mixture of experts as language model."""

from pave.bases.glm4v import Glm4v

BASE = Glm4v
