"""Batches that rows join and leave between two tokens (continuous batching).

In: prepared questions, each with its row. Out: the tokens of the rows, from the base's own generate(), which runs until
somebody asks for a pause. Then rows that have ended leave, and those of another batch, which has been prefilled, join:
keys and values are aligned on the right, with masked columns on the left, as prompts of different lengths are.
Knows nothing of HTTP and queues.

b rows, l tokens of a row, h heads, d channels of a head
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from pave.model.call import Calls
from pave.model.inputs import ClipFeatures, Inputs, Use, stack
from pave.model.layout import padded
from pave.serving.rows import Over, Row, Steps


@dataclass
class Batch:
    """Rows between two tokens. `past` holds keys and values of all tokens but the last (b h l-1 d)."""

    calls: Calls
    rows: list[Row]
    clips: list[ClipFeatures]
    inputs: Inputs
    past: Any = None

    def run(self, pause: Callable[[], bool]) -> None:
        """Generate until all rows are over, or `pause` says so after a token."""
        rows, marks = self.rows, self.calls.host.placeholders

        def between() -> bool:  # not before the token of a mark has been read: it is hidden below
            return pause() and not any(row.ids and row.ids[-1] in marks for row in rows)

        over = Over(rows, frozenset(self.calls.host.stops), between)
        output = self.calls.generate(
            self.inputs,
            self.past,
            max_new_tokens=max(row.sampling.most - len(row.ids) for row in rows) + 1,  # the rows end themselves
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([Steps(rows, over)]),
            stopping_criteria=StoppingCriteriaList([over]),
            return_dict_in_generate=True,
        )
        ids, known = output.sequences.cpu(), self.inputs.input_ids.shape[1]
        fresh = ids[:, known:]
        fresh[torch.isin(fresh, torch.tensor([*marks]))] = self.calls.host.pad  # else they would be counted as media
        mask = torch.cat([self.inputs.attention_mask, torch.ones_like(fresh)], 1)
        self.inputs, self.past = replace(self.inputs, input_ids=ids, attention_mask=mask), output.past_key_values

    @property
    def over(self) -> bool:
        return all(row.over for row in self.rows)

    @property
    def joinable(self) -> bool:
        """Whether rows can join and leave: the cache keeps every token, and in order."""
        return isinstance(self.past, DynamicCache) and all(type(layer) is DynamicLayer for layer in self.past.layers)


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of joinable batches that are not over, as one batch; one of these if all have just ended."""
    kept = [[i for i, row in enumerate(batch.rows) if not row.over] for batch in batches]
    if not any(kept):
        return batches[0]
    batch = selected(batches, kept, light=True)
    columns = batch.inputs.input_ids.shape[1] - 1
    batch.past = batches[0].past
    for layers in zip(*(each.past.layers for each in batches), strict=True):
        for name in ("keys", "values"):
            parts = [getattr(layer, name)[some] for layer, some in zip(layers, kept, strict=True)]
            setattr(layers[0], name, torch.cat([aligned(part, columns) for part in parts]))
    return batch


def selected(batches: Sequence[Batch], kept: Sequence[Sequence[int]], light: bool) -> Batch:
    """Some rows of batches as one, without keys and values. light: these come from elsewhere, and no pictures are
    needed."""
    calls, places = batches[0].calls, [(batch, i) for batch, some in zip(batches, kept, strict=True) for i in some]
    clips = [_light(batch.clips[i]) if light else batch.clips[i] for batch, i in places]
    real = [batch.inputs.input_ids[i][batch.inputs.attention_mask[i].bool()].tolist() for batch, i in places]
    counts = [row.count(calls.host.placeholder) for row in real]
    ids, mask = padded(calls.host, real, [max(counts) - count for count in counts])
    inputs = Inputs(
        ids,
        mask,
        stack(clips, calls.host),
        _uses([batch.inputs.uses for batch in batches], kept),
        tuple(batch.inputs.newline[i] for batch, i in places),
        None,
        calls.host,
    )
    return Batch(calls, [batch.rows[i] for batch, i in places], clips, inputs)


def aligned(cached: Tensor, length: int) -> Tensor:
    """Keys or values (b h l d) with so many columns: on the left there are masked ones, to add or to drop."""
    return pad(cached, (0, 0, length - cached.shape[2], 0))


def _light(clip: ClipFeatures) -> ClipFeatures:
    """A clip of which nothing is read but its times: keys and values hold the rest."""
    deep = None if clip.deep is None else clip.deep[:, :0]
    return replace(clip, vision=clip.vision[:, :0], tokens=clip.tokens[:, :0], deep=deep)


def _uses(batches: Sequence[Sequence[Use]], kept: Sequence[Sequence[int]]) -> tuple[Use, ...]:
    """The patches of some rows of several batches."""
    known = {(id(use.attached), use.weight): use for uses in batches for use in uses}
    found = []
    for key, first in known.items():
        own = [next((use for use in uses if (id(use.attached), use.weight) == key), None) for uses in batches]
        parts = list(zip(own, kept, strict=True))
        rows = torch.tensor([use is not None and bool(use.rows[i]) for use, some in parts for i in some])
        sides = {
            sense: tuple(None if use is None else use.sides[sense][i] for use, some in parts for i in some)
            for sense in first.sides
        }
        found += [replace(first, rows=rows, sides=sides)] if rows.any() else []
    return tuple(found)
