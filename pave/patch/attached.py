"""A patch inside a model: its modules and its hooks.

In: a patch's config and tensors, and the base. Out: an nn.Module whose state_dict has the names of the patch file.
Knows nothing of clips and prompts.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from pave.ambient import neutral
from pave.base import Host
from pave.config import RESAMPLED, Modality, PatchConfig
from pave.errors import BaseModelError, PatchMismatch, PatchNotFound, RecipeError, UsageError
from pave.fusion.inserted import Summary
from pave.patch.base_match import load_its_base, refuse_dimensions
from pave.patch.carrier import Carrier
from pave.patch.file import Patch, fusion_of, misfits, refuse_taken, resampler_of
from pave.patch.gate import Gate
from pave.patch.lora import Lora, Loras, blank_lora, targets
from pave.patch.marker import Marker
from pave.sidechannel import SideBatch


class Attached(nn.Module):
    """One patch in one model. Its hooks are registered while it is applied, and while a call prepared with it runs."""

    def __init__(self, config: PatchConfig, host: Host, *, blank: bool = False) -> None:
        """Untrained; or blank: on the meta device, for `load` to fill."""
        super().__init__()
        self.config, self.host = config, host
        refuse_taken(config.senses)
        if config.newline not in host.newlines:
            cause = f"uses newline: {config.newline}, which this base does not support"
            raise PatchMismatch(config.name, cause, f"use newline: {' | '.join(host.newlines)}")
        if config.fusion.combine != "add" and host.on_a_grid:
            cause = "inserts tokens, but visual tokens have positions on a grid in this base"
            raise PatchMismatch(config.name, cause, "use fusion.combine: add")
        if config.fusion.combine == "add" and config.fusion.query == "vision" and not host.vision_dim:
            cause = "needs features before the projector as queries, which this base does not expose"
            raise PatchMismatch(config.name, cause, "use fusion.query: projected | learnable")
        self.resampler = resampler_of(config, blank=blank)
        self.fusion = nn.ModuleDict({name: fusion_of(config, name, blank=blank) for name in config.read})
        self.lora = None
        if config.lora:
            self.lora = (blank_lora if blank else Lora)(config.lora, targets(config.lora, host.language_model))
        self.gate = Gate(config.base.dim) if config.gate else None
        self.carrier = Carrier(config.base.vision_dim, config.base.dim) if config.carries else None
        self.summary = Summary(config.base.dim, config.fusion.width) if config.replaces else None
        self.marker = Marker(config.base.dim, config.marked) if config.marked else None
        self.gated = config.gate  # False: the gate is kept open
        self.device, self.dtype = host.device, host.dtype  # of the base and of LoRA
        self.precision = host.dtype  # of the fusion and the resampler
        if config.fusion.precision == "float32":
            self.precision = torch.promote_types(host.dtype, torch.float32)
        self.aux_losses: dict[str, Tensor] = {}  # of the last call in training, weighted as in the config
        self.place: Literal["inside", "replaced", "removed"] = "removed"
        self._own = f"in training {uuid.uuid4().hex}"  # a forked process has the same
        self._calls, self._hooked, self._loras = 0, False, Loras(nn.Identity())
        self._idle = threading.Condition()

    @classmethod
    def of(cls, patch: Patch, host: Host) -> Attached:
        """A loaded patch as frozen modules; PatchMismatch if its dimensions do not fit the base. The base's weights are
        not compared."""
        refuse_dimensions(patch.config.base, host, patch.source)
        patch.check()
        try:
            if patch.config.prompt:
                host.prompter.refuse_template(patch.config.prompt, host.placeholders)
            attached = cls(patch.config, host, blank=True)
        except (RecipeError, BaseModelError) as error:
            cause = f"does not fit this base: {error}"
            raise PatchMismatch(patch.source, cause, load_its_base(patch.config.base, host)) from None
        stored = host.dtype if patch.config.fusion.precision == "base" else torch.float32
        attached.load(patch.weights(stored), patch.source)
        return attached.ready(trainable=False)

    @neutral()
    def export(self) -> Patch:
        """A copy of the current patch, on the CPU. Weights that FSDP has distributed are gathered, so every process has
        to call it."""
        return Patch(self.config, {path: _whole(value).cpu().clone() for path, value in self.state_dict().items()})

    @property
    def content(self) -> str:
        """What identifies the patch among models and processes: sha256 of its config and weights; in training, a name
        that only it and its copies in forked processes have."""
        return self._own if any(each.requires_grad for each in self.parameters()) else self._sha256

    @cached_property
    def _sha256(self) -> str:
        return self.export().sha256

    def twin(self, host: Host | None = None) -> Attached:
        """The patch with weights of its own: for another base; or for the same, where its hooks are registered only
        while a call uses it."""
        twin = Attached(self.config, host or self.host, blank=True)
        twin.load({name: value.detach().clone() for name, value in self.state_dict().items()}, self.config.name)
        for mine, its in zip(self.parameters(), twin.parameters(), strict=True):
            its.requires_grad_(mine.requires_grad)
        if host is None:
            twin.place, twin._loras = "replaced", self._loras
        twin.gated = self.gated
        return twin.train(self.training)

    def __reduce_ex__(self, protocol: Any) -> Any:
        cause = f"{self.config.name}: the modules of an applied patch cannot be copied or pickled"
        raise UsageError(f"{cause}; use export(), whose Patch can be saved and applied elsewhere")

    def enter(self, loras: Loras) -> None:
        """Register the hooks until the patch is replaced or removed."""
        self.place, self._loras = "inside", loras
        self._add_hooks()

    def give_way(self) -> None:
        """Another version replaces this one, without waiting: calls prepared with this one still run with it."""
        with self._idle:
            self.place = "replaced"
            self._drop_unused_hooks()

    def leave(self) -> None:
        """Remove the patch after the calls that still run in other threads."""
        with self._idle:
            self.place = "removed"
            self._idle.wait_for(lambda: not self._calls)
            self._drop_unused_hooks()

    def begin(self) -> None:
        """A call starts to use the patch."""
        with self._idle:
            if self.place == "removed":
                cause = "these inputs were prepared with a patch that has been removed"
                raise PatchNotFound(self.config.name, cause, "prepare the inputs again")
            self._add_hooks()
            self._calls += 1

    def end(self) -> None:
        """A call has ended."""
        with self._idle:
            self._calls -= 1
            self._drop_unused_hooks()
            self._idle.notify_all()

    def _add_hooks(self) -> None:
        if self.lora is not None and not self._hooked:
            self._loras.add(self.lora)
            self._hooked = True

    def _drop_unused_hooks(self) -> None:
        """Remove the hooks once neither the model nor a running call needs them."""
        if self.lora is not None and self._hooked and self.place != "inside" and not self._calls:
            self._loras.remove(self.lora)
            self._hooked = False

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Assign all tensors of a patch without copying; names and shapes must match exactly."""
        wrong = misfits(self.state_dict(), {name: tuple(value.shape) for name, value in tensors.items()})
        if wrong:
            part = "LoRA does" if wrong.startswith("lora.") else "tensors do"
            raise PatchMismatch(
                source, f"its {part} not fit this base: {wrong}", load_its_base(self.config.base, self.host)
            )
        modules = dict(self.named_modules())
        for name, value in tensors.items():  # like load_state_dict(assign=True), which takes three times as long
            path, _, leaf = name.rpartition(".")
            if leaf in modules[path]._parameters:
                modules[path]._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            else:
                modules[path]._buffers[leaf] = value

    def reading(self, sides: Mapping[str, Sequence[SideBatch | None]]) -> Mapping[str, Sequence[SideBatch | None]]:
        """Inputs of the fusions by name and row, None for an absent one: the senses, or the outputs of the resampler,
        which are passed through if `sides` already holds them. In training, sets `aux_losses` over all rows."""
        if self.resampler is None or RESAMPLED in sides:
            return sides
        resample = self._cast(self.resampler)
        rows = [dict(zip(sides, row, strict=True)) for row in zip(*sides.values(), strict=True)]
        outputs = [resample(row) if any(side is not None for side in row.values()) else None for row in rows]
        if self.training:
            losses = [each[1] for each in outputs if each is not None and len(each[1])]
            weight = self.resampler.config.diversity
            self.aux_losses = {"diversity": weight * torch.cat(losses).mean()} if losses and weight else {}
        return {RESAMPLED: [None if each is None else each[0] for each in outputs]}

    def windows(self, sides: Mapping[str, Sequence[SideBatch | None]]) -> list[int]:
        """How many windows of each row the resampler's loss in `aux_losses` is the mean over."""
        assert self.resampler is not None  # or there is no such loss
        rows = [dict(zip(sides, row, strict=True)) for row in zip(*sides.values(), strict=True)]
        present = [any(side is not None for side in row.values()) for row in rows]
        return [self.resampler.compared(row) if any_ else 0 for row, any_ in zip(rows, present, strict=True)]

    def fusing(self, name: str) -> Callable[..., Any]:
        """The fusion of a sense or of the resampler outputs, callable on any number of rows."""
        return self._cast(self.fusion[name])

    def carrying(self, frames: int, places: int) -> tuple[Tensor, Tensor]:
        """The carrier's features (1 t s q) and tokens (1 t s d) of a clip without pictures."""
        assert self.carrier is not None
        return self._cast(self.carrier)(frames, places)

    def summing(self, tokens: Tensor) -> Tensor:
        """Few tokens (n d) that stand in place of the visual ones (t s d) of a clip."""
        assert self.summary is not None
        return self._cast(self.summary)(tokens.to(self.device, self.precision))

    def marking(self, modality: Modality) -> Tensor | None:
        """The marker (d,) of a modality, if it has one."""
        return self._cast(self.marker)(modality) if self.marker and modality in self.config.marked else None

    def _cast(self, module: nn.Module) -> Callable[..., Any]:
        """The module in its compute dtype: float32 training weights are cast at every call, so that training computes
        exactly what the loaded patch will."""
        weights = dict(module.named_parameters())
        if all(weight.dtype == self.precision for weight in weights.values()):
            return module
        cast = {name: weight.to(self.precision) for name, weight in weights.items()}
        return lambda *arguments: functional_call(module, cast, arguments)

    def ready(self, *, trainable: bool) -> Attached:
        """Move the modules to the base's device. Trainable: weights stay float32 and are cast at every call; otherwise
        they are cast once."""
        fused = (self.resampler, self.fusion, self.carrier, self.summary, self.marker)
        parts = (*((module, self.precision) for module in fused), (self.lora, self.dtype))
        for module, dtype in parts:
            if module is not None:
                module.to(device=self.device, dtype=torch.float32 if trainable else dtype)
        return self.requires_grad_(trainable).eval()

    @property
    def adds(self) -> bool:
        """Whether the patch adds to the visual tokens; otherwise it inserts tokens."""
        return self.config.fusion.combine == "add"


def _whole(value: Tensor) -> Tensor:
    """A tensor without its graph; one that is distributed over processes is gathered."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value
