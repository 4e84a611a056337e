"""Answers as OpenAI's API writes them, with a field `pave` for what it has no place for.

In: events of the engine. Out: dictionaries for JSON, and lines of a stream. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pave.serving.engine import Done
from pave.serving.failures import line
from pave.serving.rows import HALF, Chosen

# What stands for a byte in a vocabulary: characters in byte-level BPE, or names where others fall back to bytes.
LETTERS = {letter: byte for byte, letter in bytes_to_unicode().items()}
NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}


@dataclass(frozen=True)
class Reply:
    """The frame of one answer, whole or in pieces."""

    model: str
    tokenizer: PreTrainedTokenizerBase
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, done: Done) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": done.text, "refusal": None},
            "logprobs": self._logprobs(done.chosen),
            "finish_reason": done.finish,
        }
        return {**self._frame("chat.completion"), "choices": [choice], "usage": usage(done), "pave": told(done)}

    def first(self) -> str:
        return self._line({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        """A piece of a stream."""
        return self._line({"content": text})

    def last(self, done: Done, with_usage: bool) -> str:
        """The end of a stream."""
        end = self._line({}, finish=done.finish, logprobs=self._logprobs(done.chosen), pave=told(done))
        if with_usage:
            end += line({**self._frame("chat.completion.chunk"), "choices": [], "usage": usage(done)})
        return end + "data: [DONE]\n\n"

    def _line(self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return line({**self._frame("chat.completion.chunk"), "choices": [choice], **more})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        if not chosen:
            return None
        content = [
            {**self._likely(each.id, each.logprob), "top_logprobs": [self._likely(*pair) for pair in each.top]}
            for each in chosen
        ]
        return {"content": content, "refusal": None}

    def _likely(self, id: int, logprob: float) -> dict[str, Any]:
        text = str(self.tokenizer.decode([id]))
        return {"token": text, "logprob": logprob, "bytes": bytes_of(self.tokenizer, id, text)}


def bytes_of(tokenizer: PreTrainedTokenizerBase, id: int, text: str) -> list[int] | None:
    """The bytes of a token, which may be a part of a character; None if the vocabulary does not tell."""
    if HALF not in text:
        return list(text.encode())
    token = str(tokenizer.convert_ids_to_tokens(id))
    if token in NAMES:
        return [NAMES[token]]
    return [LETTERS[letter] for letter in token] if LETTERS.keys() >= set(token) else None


def usage(done: Done) -> dict[str, Any]:
    total = done.prompt_tokens + done.tokens
    counts = {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "total_tokens": total}
    return {**counts, "prompt_tokens_details": {"cached_tokens": done.cached_tokens}}


def told(done: Done) -> dict[str, Any]:
    """What each sense read, and what is wrong with the clip."""
    return {"patches": list(done.patches), "signals": dict(done.signals), "warnings": list(done.warnings)}
