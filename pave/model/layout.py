"""Layout of the rows of a batch, once per call: side channels of patches, newlines, prompts, visual ids.

In: features of clips, and the patches that their rows request. Out: a `Layout`, and token rows around its visual ids.
Knows nothing of files, and computes nothing that has a gradient.

b rows, n side tokens inserted before a key frame, d channels, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pave.base import Host, Newline
from pave.config import SenseFacts
from pave.errors import PatchMismatch, SignalError, UsageError
from pave.fusion.align import align
from pave.model.inputs import ClipFeatures, Inputs, Use, stack
from pave.patch.attached import Attached
from pave.prompt import WORDY
from pave.sidechannel import SideBatch
from pave.text.shown import counted, quoted

History = Sequence[tuple[str, str]]  # questions and answers before a question, in the same dialogue


@dataclass(frozen=True)
class Layout:
    """Rows of one batch before their texts."""

    clips: tuple[ClipFeatures, ...]
    uses: tuple[Use, ...]
    newlines: tuple[Newline, ...]
    templates: tuple[str, ...]  # of the prompts
    visual: tuple[list[int], ...]  # ids of the visual part: placeholders, and the base's tokens around key frames
    base: Host

    @property
    def spare(self) -> list[int]:
        """Placeholders that each row lacks to have as many as the row with most."""
        counts = [row.count(self.base.placeholder) for row in self.visual]
        return [max(counts) - count for count in counts]

    def inputs(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Inputs:
        """Token rows around the visual ids, as inputs of forward() and generate()."""
        visual = stack(self.clips, self.base)
        return Inputs(input_ids, attention_mask, visual, self.uses, self.newlines, position_ids, self.base)


def lay_out(host: Host, clips: Sequence[ClipFeatures], uses: Sequence[Use]) -> Layout:
    """Rows of one batch; `uses` have their side channels."""
    acting = [[use.attached for use in uses if use.acting[i]] for i in range(len(clips))]
    visual = [None if clip.blind else clip.tokens for clip in clips]
    newlines, templates = zip(*(_written(host, patches) for patches in acting), strict=True)
    with torch.no_grad():  # sizes only; the call computes these tokens again, with gradients
        sizes = [[[len(group) for group in groups] for groups in row] for row in inserted(uses, visual)]
    bare = bare_rows(uses, [clip.blind for clip in clips])
    rows = zip(clips, newlines, sizes, bare, strict=True)
    visual = [host.visual_ids(clip.times.tolist(), newline, extra, only) for clip, newline, extra, only in rows]
    return Layout(tuple(clips), tuple(uses), newlines, templates, tuple(visual), host)


def bare_rows(uses: Sequence[Use], blind: Sequence[bool]) -> list[bool]:
    """Rows without visual tokens: those that a patch replaces; and those without pictures, if no patch has tokens for
    them. PatchMismatch for a row of which several patches would."""
    carriers = [[use.name for use in uses if missing and use.carries(row)] for row, missing in enumerate(blind)]
    for names in carriers:
        if len(names) > 1:
            cause = "each bring visual tokens of their own for a clip without pictures"
            raise PatchMismatch(" and ".join(names), cause, "use one of them per question")
    bare = [missing and not names for missing, names in zip(blind, carriers, strict=True)]
    for row in range(len(bare)):
        if replacing := [use.name for use in uses if use.replaces(row)]:
            adding = [use.name for use in uses if use.attached.adds and use.acting[row] and use.attached.config.senses]
            if len(replacing) > 1 or adding:
                cause = "needs the visual tokens, or replaces them too"
                cause += f", but {replacing[0]} replaces them"
                raise PatchMismatch(" and ".join([*replacing[1:], *adding]), cause, "use one of them per question")
            bare[row] = True
    return bare


def perceived(uses: Sequence[Use], clips: Sequence[ClipFeatures]) -> tuple[Use, ...]:
    """Patches with their side channels in each row, aligned with the key frames. The clip of a row must have been
    encoded for all patches that the row requests. A patch that was not trained for it reads nothing of a clip without
    pictures."""
    return tuple(
        replace(
            use,
            sides={
                sense: tuple(
                    _side(facts, clip) if requested and (alone or not clip.blind) else None
                    for clip, requested in zip(clips, use.rows, strict=True)
                )
                for sense, facts in use.attached.config.senses.items()
            },
        )
        for use in uses
        for alone in [use.attached.config.sound_alone]
    )


def _side(facts: SenseFacts, clip: ClipFeatures) -> SideBatch | None:
    if facts.preprocessing not in clip.sides:
        raise SignalError(f"these features have no tokens of {facts.encoder}; encode the clips with this patch applied")
    side, _ = clip.side(facts.preprocessing, facts.align)
    return align([side], [clip.times.cpu()], facts.align) if side is not None and side.present else None


def _written(host: Host, patches: Sequence[Attached]) -> tuple[Newline, str]:
    """Newline and prompt template of a row. PatchMismatch if the patches that act on it need different ones."""
    own: tuple[Newline, str] = host.newlines[0], host.template
    needed: set[tuple[Newline, str]] = {(patch.config.newline, patch.config.prompt or own[1]) for patch in patches}
    if len(needed) > 1:
        names = ", ".join(f"{patch.config.name} (newline: {patch.config.newline})" for patch in patches)
        raise PatchMismatch(names, "these patches need different prompt layouts", "use one of them per question")
    return needed.pop() if needed else own


def refuse_apart(host: Host, patches: Sequence[Attached]) -> None:
    """Raise PatchMismatch for patches that cannot share a row."""
    _written(host, patches)


def inserted(uses: Sequence[Use], visual: Sequence[Tensor | None]) -> list[list[list[Tensor]]]:
    """Tokens that patches insert: for each row, for each sense, groups (n d), one per key frame or a single one; one
    for what replaces its visual tokens (t s d), which is None for a clip without pictures; and one for a marker."""
    groups: list[list[list[Tensor]]] = [[] for _ in visual]
    for use in uses:
        read = use.attached.reading(use.sides) if use.weight and not use.attached.adds else {}
        for name, sides in read.items():
            fusion = use.attached.fusing(name)
            for i, side in enumerate(sides):
                if side is not None:
                    tokens, real = fusion(side.to(use.attached.device))
                    groups[i].append([group[mask] for group, mask in zip(tokens[0], real[0], strict=True)])
        for i, own in enumerate(visual):
            if own is not None and use.replaces(i):
                groups[i].append([use.attached.summing(own)])  # the last group comes first
            mark = None if use.attached.adds else use.mark(i, own is None)
            if mark is not None:
                groups[i].append([mark[None]])
    return groups


def refuse_uneven(**lists: object) -> None:
    """UsageError unless these lists, by what they hold, have one entry or more each, and equally many."""
    counts = {}
    for what, values in lists.items():
        if isinstance(values, str) or not isinstance(values, Collection):
            raise UsageError(f"the {what}s are a {type(values).__name__}; pass a list, with one {what} per row")
        counts[what] = len(values)
    if len({*counts.values()}) > 1 or 0 in counts.values():
        *some, last = (counted(count, what) for what, count in counts.items())
        raise UsageError(f"got {', '.join(some)} and {last}; pass equally many, one or more of each")


def refuse_questions(host: Host, questions: Iterable[object]) -> None:
    """UsageError for the first question that this base does not take."""
    for question in questions:
        host.refuse_text(question)


def refuse_history(host: Host, history: object) -> None:
    """UsageError for what is no list of earlier turns, each a question that this base takes and its answer, or for one
    that is not worth tokenising, which would take seconds."""
    if isinstance(history, str) or not isinstance(history, Collection):
        raise UsageError(f"the history is a {type(history).__name__}; pass a list of (question, answer)")
    for turn in history:
        if not isinstance(turn, tuple | list) or len(turn) != 2:
            raise UsageError(f"a turn of the history is (question, answer), got {quoted(turn)}")
        question, answer = turn
        host.refuse_text(question)
        if not isinstance(answer, str):
            raise UsageError(f"the answer of a turn is a {type(answer).__name__}; pass text (a str)")
    length, most = sum(len(text) for turn in history for text in turn), (host.context or 0) * WORDY
    if most and length > most:
        cause = f"the history has {length:,} characters, this base takes {host.context:,} tokens of all"
        raise UsageError(f"{cause}; leave out the first turns")


def tokenise(
    host: Host, questions: Sequence[str], layout: Layout, histories: Sequence[History] = ()
) -> tuple[Tensor, Tensor]:
    """Ids and mask (b l) of one question per row behind its visual ids and earlier turns, padded on the left.

    Ragged rows get the same number of placeholders: Hugging Face's beam search splits visual features by counting
    them, and silently mixes up rows otherwise. Spare ones are in the left padding, are masked out, and read zeros.
    """
    histories = histories or [()] * len(questions)
    refuse_questions(host, questions)
    for history in histories:
        refuse_history(host, history)
    rows = []
    for question, template, visual, history in zip(questions, layout.templates, layout.visual, histories, strict=True):
        before, after = host.prompt(question, template, history)
        rows.append([*before, *visual, *after])
    return padded(host, rows, layout.spare)


def padded(host: Host, rows: Sequence[Sequence[int]], spare: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids and mask (b l) of rows, padded on the left; so many placeholders end the padding of each."""
    length = max(len(row) + more for row, more in zip(rows, spare, strict=True))
    ids = torch.full((len(rows), length), host.pad)
    mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for i, (row, more) in enumerate(zip(rows, spare, strict=True)):
        start = length - len(row)
        ids[i, start - more : start] = host.placeholder
        ids[i, start:] = torch.tensor(row)
        mask[i, start:] = 1
    return ids, mask
