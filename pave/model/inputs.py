"""The inputs of one call: frozen features of clips, the patches of each row, and tokens.

In: tensors. Out: frozen dataclasses of tensors, which forward() and generate() accept. Knows nothing of files, and
computes nothing that has a gradient.

b rows, t key frames, s visual tokens per key frame, q d channels before and after the projector, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pave.base import Host, Newline, Seen, Visual
from pave.config import Modality, PatchConfig
from pave.errors import UsageError
from pave.fusion.align import beyond
from pave.patch.attached import Attached
from pave.sidechannel import Rule, SideBatch, SideTokens
from pave.text.shown import brief


@dataclass(frozen=True)
class ClipFeatures:
    """The outputs of the frozen networks for one clip. No patch changes them, so they can be cached."""

    vision: Tensor  # (t s q)
    tokens: Tensor  # (t s d)
    times: Tensor  # (t,) seconds
    sides: Mapping[str, SideTokens | None] = field(default_factory=dict)  # by the encoder's `spec.preprocessing`
    absent: Mapping[str, str] = field(default_factory=dict)  # the same key -> why the side channel is None
    deep: Tensor | None = None  # (t s k d), where the base has such features
    warnings: tuple[str, ...] = ()  # of the clip's files, as in `Report`
    sensors: frozenset[str] = frozenset()  # keys of `sides` that are not its own sound and may outlast it

    def __repr__(self) -> str:
        return brief(self)

    @property
    def blind(self) -> bool:
        """Whether the clip has no pictures: its visual features have no channels."""
        return not self.tokens.shape[-1]

    def without_pictures(self) -> ClipFeatures:
        """The clip as if it had none."""
        return replace(self, vision=self.vision[..., :0], tokens=self.tokens[..., :0], deep=None)

    def with_senses(self, sensed: ClipFeatures) -> ClipFeatures:
        """The clip with further side channels, as `Perception.sense` encodes them."""
        return replace(
            self,
            sides={**self.sides, **sensed.sides},
            absent={**self.absent, **sensed.absent},
            warnings=tuple(dict.fromkeys([*self.warnings, *sensed.warnings])),
            sensors=self.sensors | sensed.sensors,
        )

    def side(self, key: str, rule: Rule) -> tuple[SideTokens | None, int]:
        """The side channel that a sense reads, and how many steps of it are beyond the clip (see `pave.fusion.align`),
        which belong to nobody; by the index rule and in the clip's own sound, none are."""
        side = self.sides[key]
        if side is None or rule == "index" or key not in self.sensors:
            return side, 0
        outside = beyond(side, self.times)
        return (side.only(~outside), int(outside.sum())) if outside.any() else (side, 0)

    def to(self, device: torch.device | str) -> ClipFeatures:
        """The same clip on another device; side tokens are moved later, with their batch."""
        vision, tokens, times = (each.to(device) for each in (self.vision, self.tokens, self.times))
        deep = None if self.deep is None else self.deep.to(device)
        return replace(self, vision=vision, tokens=tokens, times=times, deep=deep)


@dataclass(frozen=True)
class Elsewhere:
    """A patch in another process, by its content: pickled inputs do not hold its weights."""

    config: PatchConfig
    content: str
    host: None = None


@dataclass(frozen=True)
class Use:
    """One patch in one call: its rows, its weight and its side channels. A snapshot: changing the model's patches does
    not affect a prepared call. Another model runs it with its own patch of equal content."""

    name: str
    attached: Attached  # in unpickled inputs an `Elsewhere`, which a call replaces
    weight: float
    rows: Tensor  # bool (b,) on the CPU: rows that request the patch
    sides: Mapping[str, tuple[SideBatch | None, ...]]  # sense -> side channel of each row, None where it has none

    def __repr__(self) -> str:
        return f"Use({self.name}, weight {self.weight:g}, rows {self.rows.tolist()})"

    @property
    def sensing(self) -> Tensor:
        """Rows that request the patch and have at least one of its senses (b,)."""
        present = [any(sides[i] is not None for sides in self.sides.values()) for i in range(len(self.rows))]
        return self.rows & torch.tensor(present) & bool(self.weight)

    @property
    def acting(self) -> Tensor:
        """Rows that the patch changes (b,): those in `sensing`; or all that request it, if it has no sense or was
        trained with keep_lora_when_absent. All other rows are the base's own, their layout included."""
        always = self.attached.config.keep_lora_when_absent or not self.sides
        return self.rows & bool(self.weight) if always else self.sensing

    def carries(self, row: int) -> bool:
        """Whether the patch brings the visual tokens of a row without pictures."""
        return self.attached.config.carries and bool(self.sensing[row])

    def replaces(self, row: int) -> bool:
        """Whether tokens of the patch stand in place of all visual ones of a row."""
        return self.attached.config.replaces and bool(self.acting[row])

    def mark(self, row: int, blind: bool) -> Tensor | None:
        """The patch's marker (d,) for what it reads of a row, if it has one; `blind`: the row has no pictures."""
        if self.attached.marker is None or not self.acting[row] or (blind and not self.sensing[row]):
            return None
        sensed: Modality = "sound" if blind else "both"
        return self.attached.marking(sensed if self.sensing[row] else "pictures")

    @property
    def strength(self) -> Tensor:
        """The factor of the patch's LoRA on each row (b,)."""
        return self.weight * self.acting

    def __reduce__(self) -> tuple[Any, ...]:
        elsewhere = Elsewhere(self.attached.config, self.attached.content)
        return Use, (self.name, elsewhere, self.weight, self.rows, self.sides)


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call. `attention_mask` may be (b l), or (b 1 l l) with explicit `position_ids` when several
    questions share the visual rows of one clip, perhaps a `pave.packing.mask.PackedMask`."""

    input_ids: Tensor  # int64 (b l)
    attention_mask: Tensor
    visual: Visual
    uses: tuple[Use, ...] = ()
    newline: tuple[Newline, ...] = ()  # of each row; empty: the base's default
    position_ids: Tensor | None = None  # int64 (b l); None: derived from the mask
    base: Host | str | None = field(default=None, repr=False)  # that saw the clips, or its identity; None: unknown

    def __repr__(self) -> str:
        return brief(self)

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.input_ids, self.attention_mask, self.visual, self.uses, self.newline, self.position_ids)
        return Inputs, (*parts, self.base.identity() if isinstance(self.base, Host) else self.base)

    def to(self, *place: Any, **options: Any) -> Inputs:
        """These inputs as they are, for trainers, which move every batch: a call moves what its base reads."""
        return self

    def positions(self) -> Tensor:
        """Explicit positions: without them, forward() of the base would count the left padding too."""
        if self.position_ids is not None:
            return self.position_ids
        if self.attention_mask.dim() != 2:
            raise UsageError(f"a mask of shape {tuple(self.attention_mask.shape)} needs explicit position_ids")
        return (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def refuse_other(inputs: object) -> None:
    """UsageError for what is no `Inputs`."""
    if not isinstance(inputs, Inputs):
        raise UsageError(f"the inputs are a {type(inputs).__name__}; pass what model.prepare(clips, questions) returns")


def refuse_labels(labels: object, shape: tuple[int, ...] | None) -> None:
    """UsageError unless labels are int64 of this shape; None: of any."""
    if isinstance(labels, Tensor) and labels.dtype == torch.int64 and shape in (None, tuple(labels.shape)):
        return
    got = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
    wanted = "(b l)" if shape is None else f"{shape}, as input_ids,"
    raise UsageError(f"labels are {got}; pass a tensor {wanted} of torch.int64, -100 where no token is learned")


def stack(clips: Sequence[ClipFeatures], host: Host) -> Visual:
    """Clips as one padded batch; those without pictures have zeros."""
    pictured = next((clip.tokens for clip in clips if not clip.blind), torch.zeros(0, dtype=host.dtype))

    def seen(clip: ClipFeatures) -> Seen:
        if not clip.blind:
            return Seen(clip.vision, clip.tokens, clip.deep)
        shape = clip.tokens.shape[:2]
        deep = pictured.new_zeros(*shape, host.levels, host.dim) if host.levels else None
        return Seen(pictured.new_zeros(*shape, host.vision_dim), pictured.new_zeros(*shape, host.dim), deep)

    visual = Visual.stack([seen(clip) for clip in clips], [clip.times.to(pictured.device) for clip in clips])
    return replace(visual, blind=torch.tensor([clip.blind for clip in clips]))
