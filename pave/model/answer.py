"""Answers: the text, its patches, what the encoders read, warnings of the files, and the seconds of each step.

In: prepared questions. Out: an `Answer` for each, or its text as a stream. Knows nothing of files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from pave.errors import UsageError
from pave.model.call import Calls
from pave.model.inputs import ClipFeatures, Inputs
from pave.text.shown import quoted


class Answer(str):
    """The generated text, with its patches, signals, timings and warnings."""

    patches: tuple[str, ...]  # names of the requested patches
    signals: Mapping[str, str]  # sense -> what was read, or why nothing was
    timings: Mapping[str, float]  # seconds of each step
    warnings: tuple[str, ...]  # what is wrong with the clip's files, as in `Clip.report`
    conflict: float | None = None  # whether pictures and signals disagree, 0 to 1, if `ask` was told to measure it

    def __new__(
        cls,
        text: str,
        patches: tuple[str, ...],
        signals: Mapping[str, str],
        timings: Mapping[str, float],
        warnings: Sequence[str] = (),
    ) -> Answer:
        answer = super().__new__(cls, text)
        answer.patches, answer.signals, answer.timings = patches, dict(signals), dict(timings)
        answer.warnings = tuple(warnings)
        return answer

    def __getnewargs__(self) -> tuple[Any, ...]:  # copy and pickle keep the attributes
        return str(self), self.patches, self.signals, self.timings, self.warnings


@dataclass(frozen=True)
class Prepared:
    """Questions that are ready for generation."""

    inputs: Inputs
    signals: Sequence[Mapping[str, str]]  # of each row, as in `Answer`
    warnings: Sequence[Sequence[str]]
    timings: Mapping[str, float]  # seconds of each step so far
    most: int  # tokens of an answer
    clips: Sequence[Any] = ()  # `Clip`s; none of a show
    features: Sequence[ClipFeatures] = ()


def most_of(max_new_tokens: object) -> int:
    """The most tokens of an answer, checked."""
    if isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool) and index(max_new_tokens) >= 1:
        return index(max_new_tokens)
    raise UsageError(
        f"max_new_tokens={quoted(max_new_tokens)} is no length of an answer; pass a whole number, 1 or more"
    )


def answers(calls: Calls, prepared: Prepared) -> list[Answer]:
    """The answers to all rows, decoded greedily."""
    begin = time.perf_counter()
    generated = texts(calls, prepared.inputs, prepared.most)
    timings = {**prepared.timings, "generate": time.perf_counter() - begin}
    return [
        Answer(text.strip(), tuple(use.name for use in prepared.inputs.uses if use.rows[i]), signals, timings, warnings)
        for i, (text, signals, warnings) in enumerate(zip(generated, prepared.signals, prepared.warnings, strict=True))
    ]


def texts(
    calls: Calls, inputs: Inputs, max_new_tokens: int, past: Any = None, processors: Sequence[LogitsProcessor] = ()
) -> list[str]:
    """The text generated for each row, decoded greedily; spaces at its ends are kept. `past`: as in `generate`;
    `processors` are shown the logits of each token."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    ids = calls.generate(inputs, past, **options, logits_processor=LogitsProcessorList(processors))
    return calls.host.tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def pieces(calls: Calls, prepared: Prepared) -> Iterator[str]:
    """The answer to one row, streamed as it is generated. Closing the iterator stops the generation."""
    streamer = TextIteratorStreamer(calls.host.tokenizer, skip_prompt=True, skip_special_tokens=True)
    closed, failures = threading.Event(), []

    def work() -> None:
        try:
            stop = StoppingCriteriaList([_Closed(closed)])
            options = {"max_new_tokens": prepared.most, "do_sample": False, "stopping_criteria": stop}
            calls.generate(prepared.inputs, streamer=streamer, **options)
        except BaseException as error:  # raised again in the thread that reads the stream
            failures.append(error)
            streamer.end()  # unblocks the reader

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        closed.set()
        thread.join()
    if failures:
        raise failures[0]


class _Closed(StoppingCriteria):
    """Stops the generation once its stream has been closed."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.closed.is_set(), device=input_ids.device, dtype=torch.bool)
