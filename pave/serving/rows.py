"""The rows of one batch while it is generated: the choice, the text and the end of each, whatever its neighbours do.

In: logits of a step, from the base's own generate(). Out: pieces of text for each row, once they are certain. Each row
has its own sampling and generator, so that its answer does not depend on the requests beside it. Knows nothing of HTTP.

b rows, v tokens of the vocabulary, l tokens so far
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, MinPLogitsWarper, StoppingCriteria, TopKLogitsWarper, TopPLogitsWarper

from pave.model.answer import Finish
from pave.serving.messages import Sampling

HALF = "�"  # a character of which some bytes are still to come


@dataclass(frozen=True)
class Chosen:
    """One token with its probability before sampling, and the likeliest ones: pairs (id, natural logarithm)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Row:
    """One answer that is being written. `piece` gets text that will not change any more."""

    def __init__(
        self,
        sampling: Sampling,
        cancelled: threading.Event,
        decode: Callable[[list[int]], str],
        piece: Callable[[str], Any],
    ) -> None:
        self.sampling, self.cancelled, self.decode, self.piece = sampling, cancelled, decode, piece
        self.ids: list[int] = []
        self.chosen: list[Chosen] = []
        self.text = ""  # that has been handed on
        self.finish: Finish | None = None
        self.cached = 0  # tokens of the prompt that were not computed anew
        self._generator = torch.Generator()
        if sampling.seed is not None:
            self._generator.manual_seed(sampling.seed % 2**63)
        elif not sampling.greedy:
            self._generator.seed()

    @property
    def over(self) -> bool:
        return self.finish is not None or self.cancelled.is_set()

    def choose(self, logits: Tensor) -> Tensor:
        """The next token, of logits (v), as an id."""
        sampling = self.sampling
        if sampling.greedy:
            return logits.argmax()
        scores, none = logits[None].float().cpu(), torch.zeros(1, 0, dtype=torch.int64)
        scores = scores / (1.0 if sampling.temperature is None else sampling.temperature)
        warpers = [
            *([TopKLogitsWarper(sampling.top_k)] if sampling.top_k is not None else []),
            *([TopPLogitsWarper(sampling.top_p)] if sampling.top_p not in (None, 1.0) else []),
            *([MinPLogitsWarper(sampling.min_p)] if sampling.min_p is not None else []),
        ]
        for warp in warpers:
            scores = warp(none, scores)
        return torch.multinomial(scores.softmax(-1)[0], 1, generator=self._generator)[0]

    def note(self, logits: Tensor, id: int) -> None:
        """Remember the probabilities of a step, if they were asked for."""
        if self.sampling.logprobs is not None and not self.over:
            logs = logits.float().log_softmax(-1)
            best = logs.topk(self.sampling.logprobs)
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self.chosen.append(Chosen(id, logs[id].item(), top))

    def feed(self, id: int, ends: bool) -> None:
        """Take the next token. ends: it is one that ends an answer."""
        if self.over:
            return
        if not ends:
            self.ids.append(id)
        text = self.decode(self.ids)
        found = [place for stop in self.sampling.stop if (place := text.find(stop)) >= 0]
        if ends or found:
            self.finish, text = "stop", text[: min(found, default=len(text))]
        elif len(self.ids) >= self.sampling.most:
            self.finish = "length"
        self._say(text)

    def _say(self, text: str) -> None:
        """Hand on what is certain of the text: spaces at the end may be the last ones, and a word may become a stop."""
        certain = text.strip() if self.finish else text.lstrip().rstrip(HALF).rstrip()
        if not self.finish and self.sampling.stop:
            held = max(len(stop) for stop in self.sampling.stop) - 1
            certain = certain[: max(len(certain) - held, len(self.text))]
        if self.finish or certain.startswith(self.text):  # not so while a tokenizer writes a word anew
            piece, self.text = certain[len(self.text) :], certain
            if piece:
                self.piece(piece)


class Over(StoppingCriteria):
    """Gives every row its next token, and ends the rows that are complete, or that nobody waits for; all of them for a
    pause. (A streamer would be told of tokens before or after this, by the release of transformers, or a step late.)"""

    def __init__(self, rows: Sequence[Row], ends: Collection[int], pause: Callable[[], bool]) -> None:
        self.rows, self.ends, self.pause = rows, ends, pause
        self.stopped = False  # on a GPU generate() runs another step meanwhile, and takes it back

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.stopped:
            for row, id in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
                row.feed(id, id in self.ends)
            self.stopped = self.pause() or all(row.over for row in self.rows)
        return torch.tensor([self.stopped or row.over for row in self.rows], device=input_ids.device)


class Steps(LogitsProcessor):
    """Chooses the next token of every row; generate() finds it alone above minus infinity."""

    def __init__(self, rows: Sequence[Row], over: Over) -> None:
        self.rows, self.over = rows, over

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.over.stopped:
            return scores
        ids = torch.stack([row.choose(logits).to(scores.device) for row, logits in zip(self.rows, scores, strict=True)])
        for row, logits, id in zip(self.rows, scores, ids.tolist(), strict=True):
            row.note(logits, id)
        return torch.full_like(scores, -torch.inf).scatter_(1, ids[:, None], 0)
