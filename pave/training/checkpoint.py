"""Checkpoints of a training run: one safetensors file, written atomically and verified on reading; no pickle.

In: the trainable parameters, AdamW's state, the losses so far and the identity of the run. Out: a file. The clips
and the dropout of a step depend on seed and step alone, so no random generator state is saved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pave.errors import FileError, RecipeError, TrainingError, raised_as
from pave.files import json_text, tensorfile
from pave.files.locks import held
from pave.patch.filenames import WEIGHTS

NAME = "checkpoint.safetensors"
STATE = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for every parameter that has had a gradient
Parameters = Mapping[str, Mapping[str, torch.nn.Parameter]]
Identity = Mapping[str, Any]  # what identifies a run, as JSON values


def write_checkpoint(
    folder: Path,
    step: int,
    parameters: Parameters,
    optimiser: torch.optim.Optimizer,
    identity: Identity,
    losses: list[float],
) -> Path:
    """Write to a temporary file, then rename: if the process dies in between, the previous checkpoint is intact."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in _flat(parameters).items():
        state = optimiser.state.get(parameter, {})
        tensors[f"value.{name}"] = parameter.detach()
        tensors |= {f"{key}.{name}": state[key] for key in STATE if key in state}
    facts = {"step": str(step), "identity": json_text.canonical(identity), "losses": json.dumps(losses)}
    remedy = f"this was at step {step}, the previous checkpoint is intact: make room and go on with --resume"
    with raised_as(TrainingError, folder / NAME, remedy):
        tensorfile.write_sealed(folder / NAME, tensors, facts)
    return folder / NAME


@contextmanager
def owned(folder: Path, resume: bool) -> Iterator[None]:
    """The output folder of a run, for the block: TrainingError if another process trains there, or if it holds a run
    that is not to be resumed."""
    refuse_a_file(folder)
    with ExitStack() as stack:
        with raised_as(TrainingError):
            stack.enter_context(held(folder, "a training run"))
        _refuse_begun(folder, resume)
        yield


def refuse_a_file(folder: Path) -> None:
    """Refuse an output that is a file."""
    if os.path.exists(folder) and not os.path.isdir(folder):  # unlike Path's, they take any text as a name
        raise RecipeError(f"train.output={folder}: is a file; give a folder")


def _refuse_begun(folder: Path, resume: bool) -> None:
    """Refuse to start in the folder of another run, unless there is a checkpoint to `resume`."""
    checkpoint, patch = folder / NAME, folder / WEIGHTS
    if checkpoint.is_file() and not resume:
        try:
            content = f"a checkpoint of step {tensorfile.read_metadata(checkpoint).get('step')}"
        except FileError:  # damaged; --resume reports it
            content = NAME
        raise TrainingError(f"{folder} holds {content}; go on with --resume, give another train.output, or delete it")
    if patch.is_file() and not checkpoint.is_file():
        raise TrainingError(f"{folder} holds {WEIGHTS} and no checkpoint; give another train.output, or delete it")


def read_checkpoint(
    folder: Path, parameters: Parameters, optimiser: torch.optim.Optimizer, identity: Identity
) -> tuple[int, list[float]]:
    """Restore a run in place; returns the step to go on with and the losses so far. (0, []) without a checkpoint."""
    path = folder / NAME
    if not path.is_file():
        return 0, []
    with raised_as(TrainingError, remedy="delete it and start without --resume"):
        tensors, facts = tensorfile.read_sealed(path)
    values = {name: f"value.{name}" for name in _flat(parameters)}
    saved, own = dict(leaves(json.loads(facts["identity"]))), dict(leaves(identity))
    different = [key for key in saved | own if saved.get(key) != own.get(key)]
    if different or not tensors.keys() >= set(values.values()):
        named = "; ".join(f"{key}: {saved.get(key)!r} there, {own.get(key)!r} here" for key in different[:3])
        raise TrainingError(
            f"{path} belongs to another recipe, base or data ({named or 'tensors are missing'}); give another "
            "train.output, or delete it"
        )
    for name, parameter in _flat(parameters).items():
        parameter.data.copy_(tensors[values[name]])
        state = {key: tensors[f"{key}.{name}"] for key in STATE if f"{key}.{name}" in tensors}
        if state:  # AdamW expects `step` on the CPU
            optimiser.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    return int(facts["step"]), json.loads(facts["losses"])


def _flat(parameters: Parameters) -> dict[str, torch.nn.Parameter]:
    return {f"{part}.{name}": parameter for part, named in parameters.items() for name, parameter in named.items()}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted key; sequences are values, and tuples become lists as in JSON."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, list(value) if isinstance(value, tuple) else value
