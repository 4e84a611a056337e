"""lmms-eval plug-in: the model `pave`, and five benchmarks that lmms-eval lacks.

lmms-eval finds the model by the entry point `lmms_eval.models`; the tasks are in `TASKS`, for its `--include_path`,
which `python -m pave_lmms_eval` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"


def models() -> Any:
    """The manifest of the model: chat for questions, simple (`--force_simple`) for tasks scored by likelihood, which
    lmms-eval does not ask of chat models."""
    # lmms-eval is being imported when it loads entry points.
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    name = f"{__name__}.model"
    return ModelManifest("pave", simple_class_path=f"{name}.Pave", chat_class_path=f"{name}.PaveChat")
