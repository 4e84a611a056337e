"""Keys and values of the last prompts, so that a further question about the same clip computes its own tokens only.

In: prepared questions, each with its row and the key of its clip. Out: batches after their first token. A row whose
prompt begins as one about the same clip with the same patches did, with all of its visual part, takes the keys and
values from there. Rows that begin together compute equally many tokens: those with more common ones repeat some.

b rows, h heads, l tokens of a row, d channels of a head
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from pave.model.answer import Prepared
from pave.model.call import Calls
from pave.model.chat import state_of
from pave.model.kept import Kept
from pave.serving.batch import Batch, aligned, selected
from pave.serving.rows import Row


@dataclass(frozen=True)
class Prefix:
    """A prompt with its keys and values, one pair (1 h l d) for each layer."""

    ids: Sequence[int]
    layers: Sequence[tuple[Tensor, Tensor]]
    state: tuple[Any, ...]  # the patches that act, and their weights


@dataclass(frozen=True)
class Warm:
    """A row whose prompt has a known beginning."""

    row: int
    prefix: Prefix
    known: int  # tokens in common
    clip: int  # tokens up to the end of its visual part
    length: int


class Prefixes:
    """What is known of the last prompts, within a limit of bytes. For one thread."""

    def __init__(self, limit: int) -> None:
        self.kept = Kept(limit)

    def begun(
        self, calls: Calls, rows: Sequence[Row], clips: Sequence[Hashable], ready: Prepared, pause: Callable[[], bool]
    ) -> list[Batch]:
        """Batches of these rows, each run until `pause` says so after a token."""
        whole, batches = Batch(calls, list(rows), list(ready.features), ready.inputs), []
        ids = [
            row[mask.bool()].tolist()
            for row, mask in zip(ready.inputs.input_ids, ready.inputs.attention_mask, strict=True)
        ]
        keys = [(clip, *(use.name for use in ready.inputs.uses if use.acting[i])) for i, clip in enumerate(clips)]
        states = [state_of(ready.inputs.uses, i) for i in range(len(rows))]
        for some, past, cached in self._parts(calls, ids, keys, states):
            part = selected([whole], [some], light=cached > 0)
            part.past = past
            length = part.inputs.input_ids.shape[1]
            for i in some:
                rows[i].cached = max(0, cached - (length - len(ids[i])))
            part.run(pause)
            batches.append(part)
            if part.joinable and self.kept.limit:
                for place, i in enumerate(some):
                    self.kept.put(keys[i], Prefix(ids[i], _columns(part.past, place, len(ids[i]), length), states[i]))
        return batches

    def _parts(
        self, calls: Calls, ids: Sequence[list[int]], keys: Sequence[Hashable], states: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[list[int], Any, int]]:
        """Rows that begin together, their keys and values, and how many columns these have."""
        found = [
            self._warm(i, *each, calls.host.placeholder) for i, each in enumerate(zip(ids, keys, states, strict=True))
        ]
        groups: list[tuple[int, list[Warm]]] = []  # tokens to compute, rows
        for warm in sorted(filter(None, found), key=lambda each: each.known - each.length):
            fits = next((rows for fresh, rows in groups if warm.length - fresh >= warm.clip), None)
            if fits is None:
                groups.append((warm.length - warm.known, fits := []))
            fits.append(warm)
        if cold := [i for i, warm in enumerate(found) if warm is None]:
            yield cold, None, 0
        for fresh, rows in groups:
            columns = max(warm.length for warm in rows) - fresh
            yield [warm.row for warm in rows], _cache(rows, fresh, columns), columns

    def _warm(self, row: int, ids: list[int], key: Hashable, state: tuple[Any, ...], placeholder: int) -> Warm | None:
        prefix: Prefix | None = self.kept.get(key)
        if prefix is None or prefix.state != state or placeholder not in ids:
            return None
        pairs = zip(prefix.ids, ids[:-1], strict=False)  # one token at least is left, whose logits are needed
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        clip = len(ids) - ids[::-1].index(placeholder)
        return Warm(row, prefix, same, clip, len(ids)) if same >= clip else None


def _columns(past: Any, row: int, count: int, end: int) -> list[tuple[Tensor, Tensor]]:
    """So many columns of a row, up to an end."""
    some = slice(row, row + 1), slice(None), slice(end - count, end)
    return [(layer.keys[some].clone(), layer.values[some].clone()) for layer in past.layers]


def _cache(rows: Sequence[Warm], fresh: int, columns: int) -> DynamicCache:
    """Keys and values of all tokens of these rows but the last `fresh`."""
    cache = DynamicCache()
    for number, pairs in enumerate(zip(*(warm.prefix.layers for warm in rows), strict=True)):
        cut = [
            [aligned(part[:, :, : warm.length - fresh], columns) for part in pair]
            for warm, pair in zip(rows, pairs, strict=True)
        ]
        keys, values = (torch.cat(parts) for parts in zip(*cut, strict=True))
        cache.update(keys, values, number)
    return cache
