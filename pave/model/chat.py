"""Chats: questions about one clip, each after the turns before it.

In: a clip, in any form that `ask` takes. Out: an `Answer` for each question, with the tokens of a fresh `ask` with the
same history. The clip is read, seen and encoded once. The keys and values of a prompt are kept, and the next prompt
goes through the language model only from where it differs, which is usually the end of the last answer.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import DynamicCache

from pave.ambient import neutral
from pave.errors import UsageError
from pave.media.clip import Clip, limit_of
from pave.media.decoding import Timeout
from pave.media.warned import warn
from pave.model.answer import Answer, Prepared, Stream, answered, generated
from pave.model.call import Calls, senses_of
from pave.model.inputs import ClipFeatures, Inputs, Use
from pave.model.kept import Kept
from pave.model.layout import refuse_history, refuse_questions
from pave.model.options import MOST, answering
from pave.model.rows import clips_of, perceive, prepared, reading, row_of
from pave.text.shown import Lines, counted, shortened

CANNOT = (RuntimeError, ValueError, NotImplementedError, AttributeError)  # what transformers raises for such a crop()


@dataclass(frozen=True)
class Known:
    """A clip that has been read and encoded."""

    clip: Clip | None  # None: the caller has it
    options: Mapping[str, Any]  # with which a file was read
    features: ClipFeatures


@dataclass(frozen=True)
class Prefix:
    """Tokens with their keys and values."""

    ids: Sequence[int]
    past: Any
    state: tuple[Any, ...]  # on what they depend besides the ids: the clip, the patches that act, and their weights


@dataclass(frozen=True)
class Turn:
    """A question that is being answered."""

    question: str
    state: tuple[Any, ...]
    beams: int


class Chat(Lines):
    """A dialogue about one clip. `history` holds its turns and may be changed: with an empty list it begins anew.

    What is kept between questions lies in `model.kept`, within its limit of bytes; what only this chat keeps is freed
    when it is closed or dropped. A chat answers one question at a time."""

    @neutral()
    def __init__(self, calls: Calls, kept: Kept, row: Mapping[str, Any], timeout: Timeout) -> None:
        self.calls, self.kept = calls, kept
        self._timeout: Timeout = limit_of(timeout)
        self._row = row_of({**row, "question": ""})
        refuse_history(calls.host, self._row.history)
        self.history: list[tuple[str, str]] = [(question, answer) for question, answer in self._row.history]
        self.recomputed = ""  # what the last question computed again, and why
        self._prefix = object()  # keys of what this chat keeps; a file's features have one of their own
        self._clip: Hashable = object()
        self._own = self._prefix, self._clip
        self._busy, self._asked, self._told = threading.Lock(), False, False
        weakref.finalize(self, kept.drop, *self._own)
        requested = calls.applied.uses([self._row.patches], 1)
        self._known(requested, requested, [])

    def ask(
        self, question: str, *, patches: Sequence[str] | None = None, max_new_tokens: int = MOST, **options: Any
    ) -> Answer:
        """Ask a further question. patches: names, for this question; None means those passed to chat(), or else all
        that are enabled. options: of Hugging Face's `generate`, by name."""
        ready, turn = self._begin(question, patches, answering(max_new_tokens, options))
        output = answer = None
        try:
            begin = time.perf_counter()
            output = generated(self.calls, ready)
            [answer] = answered(self.calls, ready, output, time.perf_counter() - begin)
            return answer
        finally:
            self._end(turn, output, answer)

    def stream(
        self, question: str, *, patches: Sequence[str] | None = None, max_new_tokens: int = MOST, **options: Any
    ) -> Stream:
        """`ask`, but an iterator over the pieces of the answer. If it is closed before its end, the question is not
        part of the history."""
        ready, turn = self._begin(question, patches, answering(max_new_tokens, options))
        try:
            return Stream(self.calls, ready, lambda output, answer: self._end(turn, output, answer))
        except UsageError:
            self._busy.release()
            raise

    @property
    def bytes(self) -> int:
        """Bytes that are kept for the next question, the features of a file included."""
        return self.kept.size(self._prefix) + self.kept.size(self._clip)

    def close(self) -> None:
        """Free what only this chat keeps; another question would compute it again. The features of a file stay, within
        the limit, for other chats about it."""
        self.kept.drop(*self._own)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self) -> list[str]:
        clip = self._row.clip
        about = os.path.basename(clip) if isinstance(clip, str | Path) else f"a {type(clip).__name__}"
        turns = [f"  {shortened(question, 60)} {shortened(answer, 60)}" for question, answer in self.history]
        return [f"chat about {about}: {counted(len(turns), 'turn')}, {self.bytes:,} bytes kept", *turns]

    # The steps of a question

    @neutral()
    def _begin(self, question: str, patches: Sequence[str] | None, options: Mapping[str, Any]) -> tuple[Prepared, Turn]:
        refuse_questions(self.calls.host, [question])
        if not self._busy.acquire(blocking=False):
            raise UsageError(
                "this chat is answering another question: wait, or read or close its stream, then ask again"
            )
        try:
            return self._prepared(question, self._row.patches if patches is None else patches, options)
        except BaseException:
            self._busy.release()
            raise

    def _prepared(
        self, question: str, patches: Sequence[str] | None, options: Mapping[str, Any]
    ) -> tuple[Prepared, Turn]:
        again: list[str] = []
        requested = self.calls.applied.uses([patches], 1)
        begin = time.perf_counter()
        features = self._known(requested, self.calls.open(requested, [question]), again)
        seconds = time.perf_counter() - begin
        row = {"clip": features, "question": question, "patches": patches, "history": self.history}
        ready = prepared(self.calls, [row], None, options)
        turn = Turn(question, (self._clip, *state_of(ready.inputs.uses, 0)), options["num_beams"])
        past, cached = self._reused(ready.inputs, turn, again)
        self.recomputed = "; ".join(again)
        self._asked = True
        timings = {**ready.timings, "encode": seconds}
        return replace(ready, timings=timings, past=past, cached=cached), turn

    def _known(self, requested: Sequence[Use], uses: Sequence[Use], again: list[str]) -> ClipFeatures:
        """The features of the clip, with the senses of these patches. `again` gets what is not computed for the first
        time."""
        calls, row = self.calls, self._row
        if isinstance(row.clip, ClipFeatures):
            return row.clip
        known: Known | None = self.kept.get(self._clip)
        if known is None:
            self._clip = self._key()
            known = self.kept.get(self._clip)  # of another chat
        needed = calls.perception.encoders(senses_of(uses))
        lacking = {key: each for key, each in needed.items() if known is None or key not in known.features.sides}
        if known is not None and not lacking:
            return known.features
        options = reading(calls, [row], uses, 0) if isinstance(row.clip, str | Path) else {}
        if known is None:
            [clip], [features], _ = perceive(calls, [row], requested, uses, self._timeout)
            again += ["the clip was read and encoded, since it was not kept"] if self._asked else []
        else:
            clip, features = known.clip, known.features
            audio = {"audio": options.get("audio") or known.options.get("audio")} if options else {}
            if clip is None or {**options, **audio} != known.options:
                [clip] = clips_of(calls, [row], uses, self._timeout)
                again += ["the file was read, for another sense"] if options else []
            assert isinstance(clip, Clip)
            sensed = calls.perception.sense(clip, lacking.values())
            warn([text for text in sensed.warnings if text not in features.warnings])
            again.append(f"{' and '.join(each.spec.sense for each in lacking.values())} was encoded")
            features = features.with_senses(sensed)
        assert isinstance(clip, Clip)
        self.kept.put(self._clip, Known(None if row.clip is clip else clip, options, features))
        return features

    def _key(self) -> Hashable:
        """The key of the clip: of a file as it is now, for all chats about it; else of this chat."""
        if isinstance(self._row.clip, str | Path) and not self._row.signals and os.path.isfile(self._row.clip):
            file = os.stat(self._row.clip)
            return os.path.abspath(self._row.clip), file.st_mtime_ns, file.st_size, *self._row.tracks.items()
        return self._clip

    def _reused(self, inputs: Inputs, turn: Turn, again: list[str]) -> tuple[Any, int]:
        """Keys and values of the beginning of a prompt, and their number; None if the kept ones are not its own, with
        the reason in `again`."""
        prefix: Prefix | None = self.kept.take(self._prefix) if turn.beams == 1 else None
        if prefix is None:
            why = "they were not kept" if turn.beams == 1 else "a search with beams needs its own"
        elif prefix.state != turn.state:
            why = "other patches act on it, or the patches or the clip have changed"
        else:
            ids = inputs.input_ids[0].tolist()
            pairs = zip(prefix.ids, ids[:-1], strict=False)  # one token at least is left, whose logits are needed
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if self.calls.host.placeholder in ids[same:]:
                why = "the prompt differs before the end of the clip"
            elif same == len(prefix.ids) or self._cropped(prefix.past, len(prefix.ids) - same):
                return prefix.past, same
            else:
                why = f"those of {self.calls.host.model_type} cannot be cropped"
                if not self._told:
                    self._told = True
                    warn([f"keys and values are kept, but {why}: each question computes its whole prompt"], UserWarning)
        if self._asked:
            again.append(f"keys and values of all {inputs.input_ids.shape[1]:,} tokens were computed: {why}")
        return None, 0

    @staticmethod
    def _cropped(past: Any, count: int) -> bool:
        """Whether the last tokens could be removed. Caches of sliding windows and of linear attention have not kept
        what came before them."""
        try:
            past.crop(-count)
        except CANNOT:
            return False
        return True

    def _end(self, turn: Turn, output: Any, answer: Answer | None) -> None:
        """Keep what the next question needs."""
        past: Any = getattr(output, "past_key_values", None)
        if output is not None and turn.beams == 1 and isinstance(past, DynamicCache):  # others have a fixed length
            ids = output.sequences[0, : past.get_seq_length()].tolist()
            self.kept.put(self._prefix, Prefix(ids, past, turn.state))
        if answer is not None:
            self.history.append((turn.question, str(answer)))
        self._busy.release()


def state_of(uses: Sequence[Use], row: int) -> tuple[Any, ...]:
    """On what keys and values of a row depend besides ids and clip: the patches that act. The counter of a parameter
    tells of changes in place."""
    patches = []
    for use in uses:
        if use.acting[row]:
            tensors = (*use.attached.parameters(), *use.attached.buffers())
            counters = [0 if each.is_inference() else each._version for each in tensors]
            patches.append((weakref.ref(use.attached), use.weight, *counters))
    return tuple(patches)
