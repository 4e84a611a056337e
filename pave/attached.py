"""A patch inside a model: its trainable modules, its hooks, and the report of how it got there.

In: a patch's config and tensors, and the base. Out: an nn.Module whose state_dict has the names of the patch file.
Knows nothing of clips and prompts.

b rows, t key frames, s visual tokens per key frame, d channels
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pave.base import Base, Visual
from pave.config import PatchConfig
from pave.errors import PatchMismatch, PatchNotFound
from pave.fusion import build_fusion
from pave.lora import Lora, targets
from pave.sidechannel import SideBatch


@dataclass(frozen=True, kw_only=True)
class PatchReport:
    """What was applied, from where, and whether it was made for this very base."""

    name: str
    source: str
    sha256: str
    bytes: int  # of the tensors
    params: int
    fusion_params: int
    lora_params: int
    senses: Mapping[str, str]  # sense -> encoder
    base_match: str  # "exact", or in words what differs
    weight: float = 1.0
    enabled: bool = True
    remarks: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        senses = ", ".join(f"{sense} ({encoder})" for sense, encoder in self.senses.items())
        state = "on" if self.enabled else "off"
        lines = [
            f"patch {self.name}: {senses}; weight {self.weight:g}, {state}",
            f"  from {self.source}, sha256 {self.sha256[:16] or 'none yet'}",
            f"  {self.params:,} parameters ({self.fusion_params:,} fusion, {self.lora_params:,} LoRA), {self.bytes:,} bytes",
            f"  base match: {self.base_match}",
            *(f"  note: {remark}" for remark in self.remarks),
        ]
        return "\n".join(lines)


class Attached(nn.Module):
    """One patch in one model. While a call runs on it, its hooks stay."""

    def __init__(self, config: PatchConfig, base: Base) -> None:
        super().__init__()
        self.config = config
        self.fusion = nn.ModuleDict({sense: fusion_of(config, sense) for sense in config.senses})
        self.lora = Lora(config.lora, targets(config.lora, base.language_model)) if config.lora else None
        self.inside = False
        self._calls = 0
        self._idle = threading.Condition()
        self._leave: Callable[[], None] = lambda: None

    def enter(self, base: Base) -> None:
        """Hang the hooks."""
        if self.lora is not None:
            self._leave = self.lora.enter(base.language_model)
        self.inside = True

    def leave(self) -> None:
        """Take the hooks off, once calls that are still running in other threads have ended."""
        with self._idle:
            self.inside = False
            self._idle.wait_for(lambda: not self._calls)
        self._leave()

    def begin(self) -> None:
        """A call starts to use the patch."""
        with self._idle:
            if not self.inside:
                raise PatchNotFound(
                    self.config.name,
                    "these inputs were prepared with a patch that has been removed",
                    "prepare them again",
                )
            self._calls += 1

    def end(self) -> None:
        """A call has ended."""
        with self._idle:
            self._calls -= 1
            self._idle.notify_all()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over all tensors of a patch; names and shapes must fit exactly."""
        own = self.state_dict()
        shapes = {name: tuple(value.shape) for name, value in own.items()}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        wrong = [f"{name} is {given.get(name, 'missing')}, expected {shape}" for name, shape in shapes.items()]
        wrong = [line for line, name in zip(wrong, shapes, strict=True) if given.get(name) != shapes[name]]
        wrong += [f"{name} is not part of it" for name in sorted(given.keys() - shapes.keys())]
        if wrong:
            cause = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise PatchMismatch(self.config.name, f"tensors do not fit this base: {cause}", "apply it to its own base")
        self.load_state_dict(dict(tensors))

    def update(self, sense: str, visual: Visual, side: SideBatch) -> Tensor:
        """What a sense adds to the visual tokens (b t s d), in the dtype of these. Weights kept in float32 for
        training are cast here at every call, so that training computes what a loaded patch will."""
        fusion, dtype = self.fusion[sense], visual.tokens.dtype
        state = dict(fusion.named_parameters()) | dict(fusion.named_buffers())
        arguments = (visual.vision, visual.tokens, side.to(visual.tokens.device, dtype))
        if all(value.dtype == dtype for value in state.values() if value.is_floating_point()):
            return fusion(*arguments)
        cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        return functional_call(fusion, cast, arguments).to(dtype)


def fusion_of(config: PatchConfig, sense: str) -> nn.Module:
    """The untrained fusion of one sense, with the dimensions that the config records of its base."""
    return build_fusion(
        config.fusion,
        side_dim=config.senses[sense].dim,
        vision_dim=config.base.vision_dim,
        visual_dim=config.base.dim,
        tokens=config.base.tokens_per_frame,
        frames=config.base.frames,
    )
