"""A patch inside a model: its trainable modules, its hooks, and the report of how it got there.

In: a patch's config and tensors, and the base. Out: an nn.Module whose state_dict has the names of the patch file.
Knows nothing of clips and prompts.

b rows, t key frames, s visual tokens per key frame, d channels
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pave.base import Host
from pave.config import RESAMPLED, PatchConfig
from pave.errors import PatchMismatch, PatchNotFound, RecipeError
from pave.patch.base_match import elsewhere, refuse_dimensions
from pave.patch.file import Patch, fusion_of, misfits, refuse_taken, resampler_of
from pave.patch.lora import Lora, Loras, blank_lora, targets
from pave.sidechannel import SideBatch


class Attached(nn.Module):
    """One patch in one model. Its hooks hang while it is inside, and while a call runs that was prepared with it."""

    def __init__(self, config: PatchConfig, host: Host, *, blank: bool = False) -> None:
        """Untrained; or blank, on the meta device, to be filled by `load`."""
        super().__init__()
        self.config = config
        refuse_taken(config.senses)
        if config.newline not in host.newlines:
            cause = f"is laid out with newline: {config.newline}, which this base does not have"
            raise PatchMismatch(config.name, cause, f"use newline: {' | '.join(host.newlines)}")
        if config.fusion.combine != "add" and host.on_a_grid:
            cause = "puts tokens beside the visual ones, whose positions lie on a grid in this base"
            raise PatchMismatch(config.name, cause, "use fusion.combine: add")
        if config.fusion.combine == "add" and config.fusion.query == "vision" and not host.vision_dim:
            cause = "asks with what lies before the projector, which this base does not show"
            raise PatchMismatch(config.name, cause, "use fusion.query: projected | learnable")
        self.resampler = resampler_of(config, blank=blank)
        self.fusion = nn.ModuleDict({name: fusion_of(config, name, blank=blank) for name in config.read})
        self.lora = None
        if config.lora:
            self.lora = (blank_lora if blank else Lora)(config.lora, targets(config.lora, host.language_model))
        self.device, self.dtype = host.device, host.dtype  # of the base, in which LoRA computes
        self.precision = host.dtype  # of the fusion and the resampler
        if config.fusion.precision == "float32":
            self.precision = torch.promote_types(host.dtype, torch.float32)
        self.aux_losses: dict[str, Tensor] = {}  # of the last call in training, weighted as the config says
        self.place: Literal["inside", "replaced", "removed"] = "removed"
        self._calls, self._hung, self._loras = 0, False, Loras(nn.Identity())
        self._idle = threading.Condition()

    @classmethod
    def of(cls, patch: Patch, host: Host) -> Attached:
        """A patch that has been loaded, frozen and ready to come in; refused when it does not fit the base, whatever
        the base's weights are."""
        refuse_dimensions(patch.config.base, host, patch.source)
        patch.check()
        try:
            attached = cls(patch.config, host, blank=True)
        except RecipeError as error:
            cause = f"does not fit this base: {error}"
            raise PatchMismatch(patch.source, cause, elsewhere(patch.config.base)) from None
        stored = host.dtype if patch.config.fusion.precision == "base" else torch.float32
        attached.load(patch.weights(stored), patch.source)
        return attached.ready(trainable=False)

    def export(self) -> Patch:
        """The patch as it is now, on the CPU."""
        return Patch(self.config, {path: value.detach().cpu().clone() for path, value in self.state_dict().items()})

    def enter(self, loras: Loras) -> None:
        """Come in, to stay."""
        self.place, self._loras = "inside", loras
        self._hang()

    def give_way(self) -> None:
        """Another version takes the name. Calls that were prepared with this one still run with it; nobody waits."""
        with self._idle:
            self.place = "replaced"
            self._settle()

    def leave(self) -> None:
        """Go, once calls that are still running in other threads have ended."""
        with self._idle:
            self.place = "removed"
            self._idle.wait_for(lambda: not self._calls)
            self._settle()

    def begin(self) -> None:
        """A call starts to use the patch."""
        with self._idle:
            if self.place == "removed":
                raise PatchNotFound(
                    self.config.name,
                    "these inputs were prepared with a patch that has been removed",
                    "prepare them again",
                )
            self._hang()
            self._calls += 1

    def end(self) -> None:
        """A call has ended."""
        with self._idle:
            self._calls -= 1
            self._settle()
            self._idle.notify_all()

    def _hang(self) -> None:
        if self.lora is not None and not self._hung:
            self._loras.add(self.lora)
            self._hung = True

    def _settle(self) -> None:
        """Take the hooks off when nothing needs them any more."""
        if self.lora is not None and self._hung and self.place != "inside" and not self._calls:
            self._loras.remove(self.lora)
            self._hung = False

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take over all tensors of a patch, themselves and not copies; names and shapes must fit exactly."""
        wrong = misfits(self.state_dict(), {name: tuple(value.shape) for name, value in tensors.items()})
        if wrong:
            part = "LoRA does" if wrong.startswith("lora.") else "tensors do"
            raise PatchMismatch(source, f"its {part} not fit this base: {wrong}", elsewhere(self.config.base))
        modules = dict(self.named_modules())
        for name, value in tensors.items():  # as load_state_dict(assign=True) does, which takes three times as long
            path, _, leaf = name.rpartition(".")
            if leaf in modules[path]._parameters:
                modules[path]._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            else:
                modules[path]._buffers[leaf] = value

    def reading(self, sides: Mapping[str, Sequence[SideBatch | None]]) -> Mapping[str, Sequence[SideBatch | None]]:
        """What the fusions read in each row, None for nothing: the senses, or what the resampler makes of them, or has
        made of them already, row by row as fusions read it. Where it trains, `aux_losses` are those of all rows."""
        if self.resampler is None or RESAMPLED in sides:
            return sides
        resample = self._cast(self.resampler)
        rows = [dict(zip(sides, row, strict=True)) for row in zip(*sides.values(), strict=True)]
        made = [resample(row) if any(side is not None for side in row.values()) else None for row in rows]
        if self.training:
            alike = [each[1] for each in made if each is not None and len(each[1])]
            weight = self.resampler.config.diversity
            self.aux_losses = {"diversity": weight * torch.cat(alike).mean()} if alike and weight else {}
        return {RESAMPLED: [None if each is None else each[0] for each in made]}

    def fusing(self, name: str) -> Callable[..., Any]:
        """The fusion of a sense, or of what the resampler makes, to be called on as many rows as there are."""
        return self._cast(self.fusion[name])

    def _cast(self, module: nn.Module) -> Callable[..., Any]:
        """A module as it is called: weights kept in float32 for training are cast here, so that training computes what
        a loaded patch will."""
        weights = dict(module.named_parameters())
        if all(weight.dtype == self.precision for weight in weights.values()):
            return module
        cast = {name: weight.to(self.precision) for name, weight in weights.items()}
        return lambda *arguments: functional_call(module, cast, arguments)

    def ready(self, *, trainable: bool) -> Attached:
        """Bring the modules to the base's device, ready to be used. Trainable: weights stay float32 and are cast at
        every call; otherwise they take the dtype they are used in once."""
        parts = ((self.resampler, self.precision), (self.fusion, self.precision), (self.lora, self.dtype))
        for module, dtype in parts:
            if module is not None:
                module.to(device=self.device, dtype=torch.float32 if trainable else dtype)
        return self.requires_grad_(trainable).eval()

    @property
    def adds(self) -> bool:
        """Whether the patch adds to the visual tokens, or puts further tokens beside them."""
        return self.config.fusion.combine == "add"
