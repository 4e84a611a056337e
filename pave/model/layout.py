"""How the rows of a batch are laid out, once for every call: what patches perceive, newlines, prompts, visual ids.

In: features of clips, and the patches that their rows ask for. Out: a `Layout`, and token rows around its visual ids.
Knows nothing of files, and computes nothing that has a gradient.

b rows, n side tokens that stand before a key frame, d channels, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pave.base import Host, Newline
from pave.config import SenseFacts
from pave.errors import PatchMismatch, SignalError
from pave.fusion.align import align
from pave.model.inputs import ClipFeatures, Inputs, Use, stack
from pave.patch.attached import Attached
from pave.sidechannel import SideBatch


@dataclass(frozen=True)
class Layout:
    """Rows of one batch before their texts."""

    clips: tuple[ClipFeatures, ...]
    uses: tuple[Use, ...]
    newlines: tuple[Newline, ...]
    templates: tuple[str, ...]  # of the prompts
    visual: tuple[list[int], ...]  # ids of the visual part: placeholders, and what the base writes around key frames

    def inputs(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Inputs:
        """Token rows around the visual ids, as forward() and generate() take them."""
        return Inputs(input_ids, attention_mask, stack(self.clips), self.uses, self.newlines, position_ids)


def lay_out(host: Host, clips: Sequence[ClipFeatures], uses: Sequence[Use]) -> Layout:
    """Rows of one batch; `uses` know what they perceive."""
    acting = [[use.attached for use in uses if use.acting[i]] for i in range(len(clips))]
    newlines, templates = zip(*(_written(host, patches) for patches in acting), strict=True)
    with torch.no_grad():
        more = [[[len(group) for group in groups] for groups in row] for row in inserted(uses, len(clips))]
    rows = zip(clips, newlines, more, strict=True)
    visual = [host.visual_ids(clip.times.tolist(), newline, sizes) for clip, newline, sizes in rows]
    return Layout(tuple(clips), tuple(uses), newlines, templates, tuple(visual))


def perceived(asked: Sequence[Use], clips: Sequence[ClipFeatures]) -> tuple[Use, ...]:
    """Patches with what they perceive in each row, aligned with the key frames. Where a row asks for a patch, its clip
    must have been encoded for it."""
    return tuple(
        replace(
            use,
            sides={
                sense: tuple(_side(facts, clip) if asks else None for clip, asks in zip(clips, use.rows, strict=True))
                for sense, facts in use.attached.config.senses.items()
            },
        )
        for use in asked
    )


def _side(facts: SenseFacts, clip: ClipFeatures) -> SideBatch | None:
    if facts.preprocessing not in clip.sides:
        raise SignalError(f"these features hold nothing of {facts.encoder}; encode the clips with this patch")
    side = clip.sides[facts.preprocessing]
    return align([side], [clip.times.cpu()], facts.align) if side is not None and side.present else None


def _written(host: Host, patches: Sequence[Attached]) -> tuple[Newline, str]:
    """Newline and prompt template of a row, as the patches that act on it want them; those that disagree cannot share
    it."""
    own: tuple[Newline, str] = host.newlines[0], host.template
    found: set[tuple[Newline, str]] = {(patch.config.newline, patch.config.prompt or own[1]) for patch in patches}
    if len(found) > 1:
        names = ", ".join(f"{patch.config.name} (newline: {patch.config.newline})" for patch in patches)
        raise PatchMismatch(names, "these patches lay out the prompt differently", "use one of them per question")
    return found.pop() if found else own


def refuse_apart(host: Host, patches: Sequence[Attached]) -> None:
    """PatchMismatch for patches that cannot share a row."""
    _written(host, patches)


def inserted(uses: Sequence[Use], rows: int) -> list[list[list[Tensor]]]:
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


def tokenise(host: Host, questions: Sequence[str], layout: Layout) -> tuple[Tensor, Tensor]:
    """Ids and mask (b l) of one question per row behind its visual ids, padded on the left.

    Ragged rows get the same number of placeholders: a beam search tells rows apart by counting them, and mixes rows up
    without a word otherwise. The spare ones stand in the left padding, where no mask shows them, and read zero rows.
    """
    held = [row.count(host.placeholder) for row in layout.visual]
    spare = [max(held) - count for count in held]
    rows = []
    for question, template, seen in zip(questions, layout.templates, layout.visual, strict=True):
        before, behind = host.prompt(question, template)
        rows.append([*before, *seen, *behind])
    length = max(len(row) + more for row, more in zip(rows, spare, strict=True))
    ids = torch.full((len(rows), length), host.pad)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for i, (row, more) in enumerate(zip(rows, spare, strict=True)):
        start = length - len(row)
        ids[i, start - more : start] = host.placeholder
        ids[i, start:] = torch.tensor(row)
        mask[i, start:] = 1
    return ids, mask
