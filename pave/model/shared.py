"""Many questions about few clips: the part of a prompt that all questions about a clip have in common, which is nearly
all of it, goes through the language model once.

In: clips and questions. Out: `Inputs`, with the keys and values of the common part, from which `generate` gives the
answers that it gives for `prepare`d ones; logits are equal up to rounding. Knows nothing of files.

b questions, l tokens of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from pave.ambient import neutral
from pave.model.applied import Names
from pave.model.call import Calls, answering, senses_of
from pave.model.inputs import ClipFeatures, Inputs, Use
from pave.model.layout import History, Layout, lay_out, padded, perceived, refuse_questions


@neutral()
@torch.no_grad()
def shared(
    calls: Calls,
    clips: Sequence[ClipFeatures],
    questions: Sequence[str],
    patches: Names = None,
    histories: Sequence[History] = (),
) -> tuple[Inputs, Any]:
    """Rows of one batch, each a question about a clip, and `past` for `generate`; None if they have nothing in common.

    Questions share if they are about the same clip, which is the same object, and the same patches act on them."""
    host, histories = calls.host, histories or [()] * len(questions)
    refuse_questions(host, questions)
    uses = calls.open(calls.applied.uses(patches, len(clips)), questions)
    groups: dict[tuple[Any, ...], int] = {}
    keys = [(id(clip), *(bool(use.rows[i]) for use in uses)) for i, clip in enumerate(clips)]
    owner = [groups.setdefault(key, len(groups)) for key in keys]
    if len(groups) == len(clips):
        return calls.prepare(clips, questions, patches, histories), None
    firsts = [owner.index(group) for group in range(len(groups))]
    seen = calls.perception.features([clips[i] for i in firsts], senses_of(uses))
    layout = lay_out(host, seen, perceived([replace(use, rows=use.rows[firsts]) for use in uses], seen))
    rows = zip(questions, owner, histories, strict=True)
    asked = [host.prompt(question, layout.templates[group], history) for question, group, history in rows]
    if any(before != asked[firsts[group]][0] for (before, _), group in zip(asked, owner, strict=True)):
        return calls.prepare(clips, questions, patches, histories), None  # a template with the question before the clip
    same = [_common([after for (_, after), g in zip(asked, owner, strict=True) if g == i]) for i in range(len(groups))]
    parts = zip(firsts, layout.visual, same, strict=True)
    heads = [[*asked[first][0], *visual, *beginning] for first, visual, beginning in parts]
    head = layout.inputs(*padded(host, heads, layout.spare))
    with answering(host.language_model):
        past = calls.forward(head, None, 1, use_cache=True).past_key_values
    past.batch_select_indices(torch.tensor(owner, device=host.device))
    tails = [after[len(same[group]) :] for (_, after), group in zip(asked, owner, strict=True)]
    return _behind(head, owner, padded(host, tails, [0] * len(tails)), _repeated(layout, uses, owner)), past


def _common(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    """The ids with which all rows begin; at least one of each is left."""
    same = takewhile(lambda ids: len({*ids}) == 1, zip(*rows, strict=False))
    return rows[0][: min(len(list(same)), min(map(len, rows)) - 1)]


def _repeated(layout: Layout, uses: Sequence[Use], owner: Sequence[int]) -> tuple[Use, ...]:
    """The patches of the questions (b,), with the side channels of their clips."""
    return tuple(
        replace(use, sides={sense: tuple(sides[group] for group in owner) for sense, sides in own.sides.items()})
        for use, own in zip(uses, layout.uses, strict=True)
    )


def _behind(head: Inputs, owner: list[int], tails: tuple[Tensor, Tensor], uses: tuple[Use, ...]) -> Inputs:
    """Whole rows (b l): the common part, padding, the rest of a question. Of what is seen only the times are left, on
    which positions depend."""
    ids, mask = torch.cat([head.input_ids[owner], tails[0]], 1), torch.cat([head.attention_mask[owner], tails[1]], 1)
    times, frames, nothing = head.visual.times[owner], head.visual.frames[owner], head.visual.tokens[:0]
    visual = replace(head.visual, vision=nothing, tokens=nothing, deep=None, frames=frames, times=times, blind=None)
    return Inputs(ids, mask, visual, uses, tuple(head.newline[group] for group in owner), None, head.base)
