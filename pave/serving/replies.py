"""Answers and errors as OpenAI's API writes them, with a field `pave` for what it has no place for.

In: events of the engine. Out: dictionaries for JSON, and lines of a stream. Knows nothing of HTTP but status codes.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pave.errors import MediaError, PatchError, PatchNotFound, PaveError, SignalError, UsageError
from pave.serving.engine import Busy, Done
from pave.serving.messages import Refused
from pave.serving.rows import Chosen

Text = Callable[[Sequence[int], bool], str]  # the text of tokens; whether special ones are left out


class Denied(PaveError):
    """A request that must not, or cannot, be answered, with its status and code; `seconds` until it may be."""

    def __init__(self, status: int, code: str, cause: str, seconds: int | None = None) -> None:
        super().__init__(cause)
        self.status, self.code, self.seconds = status, code, seconds


def failed(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The status and the body for an error. What is no fault of the request is not told."""
    status, kind, code = 500, "server_error", "internal_error"
    text, param = "the server failed; its log tells why, by the x-request-id of this answer", None
    if isinstance(error, PaveError):
        text, param = str(error), getattr(error, "param", None)
    if isinstance(error, Denied):
        status, code = error.status, error.code
    elif isinstance(error, Busy):
        status, code = 429, "busy"
    elif isinstance(error, PatchNotFound):
        status, code = 404, "model_not_found"
    elif isinstance(error, MediaError | SignalError):
        status, code = 400, "invalid_media"
    elif isinstance(error, PatchError):
        status, code = 400, "patches_do_not_fit"
    elif isinstance(error, Refused | UsageError):
        status, code = 400, "invalid_value"
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error"}
    kind = kinds.get(status, "server_error" if status > 500 else "invalid_request_error")
    return status, {"error": {"message": text, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Reply:
    """The frame of one answer, whole or in pieces."""

    model: str
    text_of: Text
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
        text = self.text_of([id], False)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def line(body: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(done: Done) -> dict[str, int]:
    total = done.prompt_tokens + done.tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.tokens, "total_tokens": total}


def told(done: Done) -> dict[str, Any]:
    """What each sense read, and what is wrong with the clip."""
    return {"patches": list(done.patches), "signals": dict(done.signals), "warnings": list(done.warnings)}
