"""Checkpoints of a training run: one safetensors file, written in one piece, read without pickle.

In: the trainable parameters, AdamW's moments, the losses so far and the identity of the run. Out: `checkpoint.safetensors`.
Which clips and which dropout a step sees follows from seed and step alone, so no state of a random generator is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pave.errors import TrainingError

NAME = "checkpoint.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
Parameters = Mapping[str, Mapping[str, torch.nn.Parameter]]


def write_checkpoint(
    folder: Path, step: int, parameters: Parameters, optimiser: torch.optim.Optimizer, identity: str, losses: list[float]
) -> Path:
    """Write to a temporary file, then rename: whoever dies in between leaves the checkpoint before."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in _flat(parameters).items():
        tensors[f"value.{name}"] = parameter.detach().cpu()
        for moment in MOMENTS:
            if moment in optimiser.state.get(parameter, {}):
                tensors[f"{moment}.{name}"] = optimiser.state[parameter][moment].cpu()
    facts = {"step": str(step), "identity": _digest(identity), "losses": json.dumps(losses)}
    part = folder / f".{NAME}.{os.getpid()}"
    try:
        save_file(tensors, part, metadata=facts)
        os.replace(part, folder / NAME)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder / NAME}: cannot be written at step {step} ({error}); the checkpoint before is kept: make room "
            "and go on with --resume"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return folder / NAME


def read_checkpoint(
    folder: Path, parameters: Parameters, optimiser: torch.optim.Optimizer, identity: str
) -> tuple[int, list[float]]:
    """Restore a run in place; returns the step to go on with and the losses so far. (0, []) without a checkpoint."""
    path = folder / NAME
    if not path.is_file():
        return 0, []
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("identity") != _digest(identity):
                raise TrainingError(
                    f"{path} belongs to another recipe, base or data; start without --resume, or give another train.output"
                )
            step = int(facts["step"])
            for name, parameter in _flat(parameters).items():
                parameter.data.copy_(file.get_tensor(f"value.{name}"))
                moments = {moment: file.get_tensor(f"{moment}.{name}").to(parameter.device) for moment in MOMENTS}
                optimiser.state[parameter] = {"step": torch.tensor(float(step)), **moments}
            return step, json.loads(facts["losses"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path} is damaged ({error}); delete it and start without --resume") from error


def _flat(parameters: Parameters) -> dict[str, torch.nn.Parameter]:
    return {f"{part}.{name}": parameter for part, named in parameters.items() for name, parameter in named.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
