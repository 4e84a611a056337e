"""What one call of a patched model reads: frozen features of clips, the patches of each row, and tokens.

In: features, side channels on their clocks, token rows. Out: frozen dataclasses of tensors that forward() and
generate() accept as they are. Knows nothing of files, and computes nothing that has a gradient.

b rows, t key frames, s visual tokens per key frame, q d channels before and after the projector, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pave.base import Base, Newline, Seen, Visual
from pave.config import RESAMPLED, SenseFacts
from pave.errors import PatchMismatch, SignalError
from pave.fusion.align import align
from pave.sidechannel import SideBatch, SideTokens

if TYPE_CHECKING:
    from pave.patch.attached import Attached


@dataclass(frozen=True)
class ClipFeatures:
    """One clip as frozen networks see it; worth caching, since no patch changes it."""

    vision: Tensor  # (t s q)
    tokens: Tensor  # (t s d)
    times: Tensor  # (t,) seconds
    sides: Mapping[str, SideTokens | None] = field(default_factory=dict)  # by the encoder's `spec.preprocessing`
    absent: Mapping[str, str] = field(default_factory=dict)  # why a side channel is None
    deep: Tensor | None = None  # (t s k d), where the base has such features
    # What resamplers have made of it as it came: (τ n c) and seconds (τ,), None for nothing. Then it holds no `sides`
    # for their patches, and is the only clip of its batch.
    made: Mapping[Attached, tuple[Tensor, Tensor] | None] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> ClipFeatures:
        """The same clip elsewhere; side tokens stay where they are until a batch is moved."""
        vision, tokens, times = (each.to(device) for each in (self.vision, self.tokens, self.times))
        deep = None if self.deep is None else self.deep.to(device)
        return ClipFeatures(vision, tokens, times, self.sides, self.absent, deep, self.made)


@dataclass(frozen=True)
class Use:
    """One patch in one call: on which rows, how strongly, and what its senses perceive there. A snapshot: changing the
    model's patches does not reach a call that has been prepared."""

    name: str
    attached: Attached
    weight: float
    rows: Tensor  # bool (b,) on the CPU: rows that ask for the patch
    sides: Mapping[str, tuple[SideBatch | None, ...]]  # sense -> side channel of each row, None where it has none

    @property
    def sensing(self) -> Tensor:
        """Rows that ask for the patch and have at least one of its senses (b,)."""
        found = [any(sides[i] is not None for sides in self.sides.values()) for i in range(len(self.rows))]
        return self.rows & torch.tensor(found) & bool(self.weight)

    @property
    def acting(self) -> Tensor:
        """Rows that the patch changes (b,): those that sense something, unless it was trained otherwise or has no
        sense. All other rows are the base's own, their layout included."""
        keep = self.attached.config.keep_lora_when_absent or not self.sides
        return self.rows & bool(self.weight) if keep else self.sensing

    @property
    def strength(self) -> Tensor:
        """How strongly the patch's LoRA runs on each row (b,)."""
        return self.weight * self.acting


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call. `attention_mask` may be (b l), or (b 1 l l) with explicit `position_ids` when several
    questions share the visual rows of one clip."""

    input_ids: Tensor  # int64 (b l)
    attention_mask: Tensor
    visual: Visual
    uses: tuple[Use, ...] = ()
    newline: tuple[Newline, ...] = ()  # of each row; empty: the base's own
    position_ids: Tensor | None = None  # int64 (b l); None: counted along the mask

    def positions(self) -> Tensor:
        """Explicit positions: left to itself, forward() of the base would count the padding on the left too."""
        if self.position_ids is not None:
            return self.position_ids
        if self.attention_mask.dim() != 2:
            raise ValueError(f"a mask of shape {tuple(self.attention_mask.shape)} needs explicit position_ids")
        return (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def sides_of(
    attached: Attached, clips: Sequence[ClipFeatures], rows: Tensor
) -> dict[str, tuple[SideBatch | None, ...]]:
    """The senses of a patch in each row of a batch, aligned with the key frames of the row. Where `rows` (b,) asks
    for the patch, the clip must have been encoded for it."""
    if attached.resampler is not None and attached in clips[0].made:
        (clip,), made = clips, clips[0].made[attached]
        return {RESAMPLED: (None if made is None else attached.resampler.side(*made, clip.times.cpu()),)}
    return {
        sense: tuple(_side(facts, clip) if asks else None for clip, asks in zip(clips, rows.tolist(), strict=True))
        for sense, facts in attached.config.senses.items()
    }


def _side(facts: SenseFacts, clip: ClipFeatures) -> SideBatch | None:
    if facts.preprocessing not in clip.sides:
        raise SignalError(f"these features hold nothing of {facts.encoder}; encode the clips with this patch")
    side = clip.sides[facts.preprocessing]
    return align([side], [clip.times.cpu()], facts.align) if side is not None and side.present else None


def beside(uses: Sequence[Use], rows: int) -> list[list[list[Tensor]]]:
    """Tokens that patches put beside the visual ones: for each row, for each sense, groups (n d), one per key frame or
    one in all."""
    found: list[list[list[Tensor]]] = [[] for _ in range(rows)]
    for use in uses:
        read = use.attached.reading(use.sides) if use.weight and not use.attached.adds else {}
        for name, sides in read.items():
            fusion = use.attached.fusing(name)
            for i, side in enumerate(sides):
                if side is not None:
                    tokens, real = fusion(side.to(use.attached.device))
                    found[i].append([group[mask] for group, mask in zip(tokens[0], real[0], strict=True)])
    return found


def tokenise(
    base: Base, questions: Sequence[str], templates: Sequence[str], visual: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Ids and mask (b l) of one question per row behind its `visual` ids, padded on the left.

    Ragged rows get the same number of placeholders: a beam search tells rows apart by counting them, and mixes rows up
    without a word otherwise. The spare ones stand in the left padding, where no mask shows them, and read zero rows.
    """
    held = [list(row).count(base.placeholder) for row in visual]
    spare = [max(held) - count for count in held]
    rows = []
    for question, template, seen in zip(questions, templates, visual, strict=True):
        before, behind = base.prompt(question, template)
        rows.append([*before, *seen, *behind])
    length = max(len(row) + more for row, more in zip(rows, spare, strict=True))
    ids = torch.full((len(rows), length), base.pad)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for i, (row, more) in enumerate(zip(rows, spare, strict=True)):
        start = length - len(row)
        ids[i, start - more : start] = base.placeholder
        ids[i, start:] = torch.tensor(row)
        mask[i, start:] = 1
    return ids, mask


def stack(clips: Sequence[ClipFeatures]) -> Visual:
    """Clips as one padded batch."""
    return Visual.stack([Seen(clip.vision, clip.tokens, clip.deep) for clip in clips], [clip.times for clip in clips])


def layout(base: Base, patches: Sequence[Attached]) -> tuple[Newline, str]:
    """Newline layout and prompt template of a row; patches that disagree cannot share it."""
    own: tuple[Newline, str] = base.newlines[0], base.template
    found: set[tuple[Newline, str]] = {(patch.config.newline, patch.config.prompt or own[1]) for patch in patches}
    if len(found) > 1:
        names = ", ".join(f"{patch.config.name} (newline: {patch.config.newline})" for patch in patches)
        raise PatchMismatch(names, "these patches lay out the prompt differently", "use one of them per question")
    return found.pop() if found else own
