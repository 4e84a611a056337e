"""Checkpoints of a training run: one safetensors file, written atomically and verified on reading; no pickle.

In: the trainable parameters, AdamW's state, the losses so far and the identity of the run. Out: a file. The clips
and the dropout of a step depend on seed and step alone, so no random generator state is saved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pave.errors import FileError, RecipeError, TrainingError, raised_as
from pave.files import json_text, tensorfile
from pave.files.locks import held
from pave.patch.filenames import WEIGHTS
from pave.training.ranks import ALONE, Ranks

NAME = "checkpoint.safetensors"
STATE = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for every parameter that has had a gradient
LENGTH = {"training.steps", "training.epochs"}  # a run may become longer, and is the same
Parameters = Mapping[str, Mapping[str, torch.nn.Parameter]]
Identity = Mapping[str, Any]  # what identifies a run, as JSON values


@dataclass(frozen=True)
class Best:
    """The weights with the best held-out accuracy so far."""

    step: int
    accuracy: float
    values: Mapping[str, Tensor]  # of all parameters, on the CPU


@dataclass(frozen=True)
class State:
    """How far a run is."""

    step: int
    losses: list[float]  # of all steps so far
    lengths: dict[int, int]  # from which step on it was to have how many steps
    best: Best | None = None


def write_checkpoint(
    folder: Path, state: State, parameters: Parameters, optimiser: torch.optim.Optimizer, identity: Identity
) -> Path:
    """Write to a temporary file, then rename: if the process dies in between, the previous checkpoint is intact."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in _flat(parameters).items():
        moments = optimiser.state.get(parameter, {})
        tensors[f"value.{name}"] = parameter.detach()
        tensors |= {f"{key}.{name}": moments[key] for key in STATE if key in moments}
    facts = {"step": str(state.step), "identity": json_text.canonical(identity), "losses": json.dumps(state.losses)}
    if len(state.lengths) > 1:
        facts["lengths"] = json.dumps(state.lengths)
    if state.best is not None:
        facts["best"] = json.dumps({"step": state.best.step, "accuracy": state.best.accuracy})
        tensors |= {f"best.{name}": value for name, value in state.best.values.items()}
    remedy = f"this was at step {state.step}, the previous checkpoint is intact: make room and go on with --resume"
    with raised_as(TrainingError, folder / NAME, remedy):
        tensorfile.write_sealed(folder / NAME, tensors, facts)
    return folder / NAME


def values(parameters: Parameters) -> dict[str, Tensor]:
    """A copy of all parameters as they are now, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in _flat(parameters).items()}


def restore(parameters: Parameters, values: Mapping[str, Tensor]) -> None:
    """Set all parameters to the values of a copy."""
    for name, parameter in _flat(parameters).items():
        parameter.data.copy_(values[name])


@contextmanager
def owned(folder: Path, resume: bool, ranks: Ranks = ALONE) -> Iterator[None]:
    """The output folder of a run, for the block: TrainingError if another process trains there, or if it holds a run
    that is not to be resumed. Of processes that train together, the first one owns it."""
    refuse_a_file(folder)
    with ExitStack() as stack:
        with ranks.together():
            if ranks.first:
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
) -> State | None:
    """Restore a run in place, and tell how far it is; None without a checkpoint. The run may have become longer."""
    path = folder / NAME
    if not path.is_file():
        return None
    with raised_as(TrainingError, remedy="delete it and start without --resume"):
        tensors, facts = tensorfile.read_sealed(path)
    names = {part: {name: f"{part}.{name}" for name in _flat(parameters)} for part in ("value", "best")}
    saved, own = dict(leaves(json.loads(facts["identity"]))), dict(leaves(identity))
    different = [key for key in saved | own if saved.get(key) != own.get(key) and key not in LENGTH]
    if different or not tensors.keys() >= set(names["value"].values()):
        named = "; ".join(f"{key}: {saved.get(key)!r} there, {own.get(key)!r} here" for key in different[:3])
        raise TrainingError(
            f"{path} belongs to another recipe, base or data ({named or 'tensors are missing'}); give another "
            "train.output, or delete it"
        )
    restore(parameters, {name: tensors[key] for name, key in names["value"].items()})
    for name, parameter in _flat(parameters).items():
        state = {key: tensors[f"{key}.{name}"] for key in STATE if f"{key}.{name}" in tensors}
        if state:  # AdamW expects `step` on the CPU
            optimiser.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    lengths: dict[str, int] = {"0": saved.get("training.steps", 0)}  # JSON has no other keys than texts
    lengths = json.loads(facts["lengths"]) if "lengths" in facts else lengths
    best = None
    if "best" in facts:
        best = Best(**json.loads(facts["best"]), values={name: tensors[key] for name, key in names["best"].items()})
    planned = {int(step): steps for step, steps in lengths.items()}
    return State(int(facts["step"]), json.loads(facts["losses"]), planned, best)


def _flat(parameters: Parameters) -> dict[str, torch.nn.Parameter]:
    return {f"{part}.{name}": parameter for part, named in parameters.items() for name, parameter in named.items()}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its dotted key; sequences are values, and tuples become lists as in JSON."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else name)
    else:
        yield key, list(value) if isinstance(value, tuple) else value
