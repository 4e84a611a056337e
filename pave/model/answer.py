"""Answers: the text and how it ended, its patches, what the encoders read, warnings of the files, seconds of each step.

In: prepared questions. Out: an `Answer` for each, or a `Stream` of its text. Knows nothing of files.

b rows, l tokens of a row
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

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
from pave.text.shown import counted, shown

Finish = Literal["stop", "length"]


class Answer(str):
    """The generated text, with how it ended, its patches, signals, timings and warnings."""

    patches: tuple[str, ...]  # names of the requested patches
    signals: Mapping[str, str]  # sense -> what was read, or why nothing was
    timings: Mapping[str, float]  # seconds of each step
    warnings: tuple[str, ...]  # what is wrong with the clip's files, as in `Clip.report`
    finish_reason: Finish  # stop: the base ended it, or a stop string did; length: cut by max_new_tokens or max_time
    tokens: int  # of the answer, without the one that ends it
    prompt_tokens: int  # of the prompt, the clip included
    cached_tokens: int  # of these, how many were in the cache of a chat
    conflict: float | None = None  # whether pictures and signals disagree, 0 to 1, if `ask` was told to measure it

    def __new__(cls, text: str, **facts: Any) -> Answer:
        answer = super().__new__(cls, text)
        vars(answer).update(facts)
        return answer

    def _repr_html_(self) -> str:
        """In a notebook: the text, and below it how it came about."""
        senses = [f"{sense} {state}" for sense, state in self.signals.items()]
        facts = [", ".join(self.patches) or "no patch", *senses, *self.warnings]
        cut = [f"cut after {counted(self.tokens, 'token')}"] if self.finish_reason == "length" else []
        small = escape(shown("; ".join([*facts, *cut, f"{sum(self.timings.values()):.2f} s"])))
        return f"<p>{escape(self)}</p><p><small>{small}</small></p>"


@dataclass(frozen=True)
class Prepared:
    """Questions that are ready for generation."""

    inputs: Inputs
    signals: Sequence[Mapping[str, str]]  # of each row, as in `Answer`
    warnings: Sequence[Sequence[str]]
    timings: Mapping[str, float]  # seconds of each step so far
    options: Mapping[str, Any]  # of generate()
    past: Any = None  # keys and values of the beginning of each row, as in `Calls.generate`
    cached: int = 0  # tokens of a row in `past`
    clips: Sequence[Any] = ()  # `Clip`s, or the features that were passed; none of a show or a chat
    features: Sequence[ClipFeatures] = ()


def answers(calls: Calls, prepared: Prepared) -> list[Answer]:
    """The answers to all rows."""
    begin = time.perf_counter()
    return answered(calls, prepared, generated(calls, prepared), time.perf_counter() - begin)


def generated(calls: Calls, prepared: Prepared, **tools: Any) -> Any:
    """What generate() returns for prepared questions: `sequences` (b l), prompt included, and `past_key_values`."""
    options = dict(prepared.options)
    if options.get("stop_strings"):
        options["tokenizer"] = calls.host.tokenizer
    try:
        return calls.generate(prepared.inputs, prepared.past, **options, **tools, return_dict_in_generate=True)
    except (ValueError, TypeError) as error:
        if isinstance(error, UsageError) or prepared.options.keys() <= {"max_new_tokens", "do_sample", "num_beams"}:
            raise
        raise UsageError(f"generate: {error}; check {', '.join(sorted(prepared.options))}") from error


def answered(calls: Calls, prepared: Prepared, output: Any, seconds: float) -> list[Answer]:
    """The answers in what generate() has returned after so many seconds."""
    length = prepared.inputs.input_ids.shape[1]
    rows = output.sequences[:, length:].cpu()
    texts = calls.host.tokenizer.batch_decode(rows, skip_special_tokens=True)
    lengths = prepared.inputs.attention_mask.sum(-1).tolist()
    found = []
    for i, (text, ids) in enumerate(zip(texts, rows.tolist(), strict=True)):
        reason, tokens = _end(calls, ids, text, prepared.options)
        answer = Answer(
            text.strip(),
            patches=tuple(use.name for use in prepared.inputs.uses if use.rows[i]),
            signals=dict(prepared.signals[i]),
            timings={**prepared.timings, "generate": seconds},
            warnings=tuple(prepared.warnings[i]),
            finish_reason=reason,
            tokens=tokens,
            prompt_tokens=lengths[i],
            cached_tokens=prepared.cached,
        )
        found.append(answer)
    return found


def _end(calls: Calls, ids: Sequence[int], text: str, options: Mapping[str, Any]) -> tuple[Finish, int]:
    """How a row of generated ids ended, and its tokens before the end."""
    stops = {*calls.host.stops}
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    if end is not None:
        return "stop", end
    words = options.get("stop_strings") or ()
    tokens = len(ids)
    if not any(word in text for word in ([words] if isinstance(words, str) else words)):
        return "length", tokens  # a padding token at its end is one that the base has chosen
    while tokens and ids[tokens - 1] == calls.host.pad:  # the row ended before others
        tokens -= 1
    return "stop", tokens


def texts(
    calls: Calls, inputs: Inputs, max_new_tokens: int, past: Any = None, processors: Sequence[LogitsProcessor] = ()
) -> list[str]:
    """The text generated for each row, decoded greedily; spaces at its ends are kept. `past`: as in `generate`;
    `processors` are shown the logits of each token."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    ids = calls.generate(inputs, past, **options, logits_processor=LogitsProcessorList(processors))
    return calls.host.tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


Ended = Callable[[Any, "Answer | None"], None]  # what generate() returned, and the answer; None: it failed, was closed


class Stream(Iterator[str]):
    """The text of one answer in pieces, as they are generated; `answer` is all of it, after the last piece. The first
    piece that is read starts the generation.

    `close`, from any thread, stops it after the current token, and ends the iterator; so does dropping the stream."""

    def __init__(self, calls: Calls, prepared: Prepared, ended: Ended = lambda output, answer: None) -> None:
        if prepared.options["num_beams"] != 1:
            raise UsageError("a stream has one beam: leave num_beams out, or call ask()")
        self._task, self._lock = _Task(calls, prepared, ended), threading.Lock()
        self._thread = threading.Thread(target=self._task.run, daemon=True)
        self._begun = self._over = False

    def __next__(self) -> str:
        if self._first():
            self._thread.start()
        piece = None if self._over else next(filter(None, self._task.streamer), None)
        if piece is not None:
            return piece
        self._over = True
        self._wait()
        failure, self._task.failure = self._task.failure, None
        if failure is not None:
            raise failure
        raise StopIteration

    @property
    def answer(self) -> Answer:
        """The answer, with how it ended. UsageError before the last piece, and for a stream that was closed."""
        if self._task.answer is None:
            raise UsageError("this stream has not come to its end, so there is no answer; read all its pieces")
        return self._task.answer

    def close(self) -> None:
        """Stop the generation, and wait until it has ended."""
        self._stop()
        self._wait()

    def __del__(self) -> None:
        if hasattr(self, "_begun"):  # otherwise it was refused
            self._stop()

    def _stop(self) -> None:
        self._task.closed.set()
        if self._first():
            self._task.run()  # which ends at once

    def _wait(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _first(self) -> bool:
        """Whether nobody has called this before."""
        with self._lock:
            first, self._begun = not self._begun, True
        return first


class _Task:
    """One generation in a thread of its own. It does not know its stream, which can be dropped."""

    def __init__(self, calls: Calls, prepared: Prepared, ended: Ended) -> None:
        self.calls, self.prepared, self.ended = calls, prepared, ended
        self.streamer = TextIteratorStreamer(calls.host.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.closed = threading.Event()
        self.answer: Answer | None = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        output = None
        try:
            if self.closed.is_set():  # before its first token
                return
            begin = time.perf_counter()
            stop = StoppingCriteriaList([_Closed(self.closed)])
            output = generated(self.calls, self.prepared, streamer=self.streamer, stopping_criteria=stop)
            if not self.closed.is_set():
                [self.answer] = answered(self.calls, self.prepared, output, time.perf_counter() - begin)
        except BaseException as error:  # raised again in the thread that reads the stream
            self.failure = error
        finally:
            self.ended(output, self.answer)
            if output is None:
                self.streamer.end()  # unblocks the reader


class _Closed(StoppingCriteria):
    """Stops the generation once its stream has been closed."""

    def __init__(self, closed: threading.Event) -> None:
        self.closed = closed

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.closed.is_set(), device=input_ids.device, dtype=torch.bool)
