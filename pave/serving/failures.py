"""Errors of requests: with the status of HTTP, and as OpenAI's API writes them.

In: an error. Out: a status and a dictionary for JSON, or the line of a stream. Knows nothing of models.
"""

from __future__ import annotations

import json
from typing import Any

from pave.errors import MediaError, PatchError, PatchNotFound, PaveError, SignalError, UsageError
from pave.text.shown import shown


class Refused(UsageError):
    """A request whose field `param` cannot be."""

    def __init__(self, param: str, cause: str) -> None:
        super().__init__(f"{param}: {cause}" if param else cause)
        self.param = shown(param) or None  # a client may have named the field


class Busy(PaveError):
    """No request can wait any more; `seconds` until it is worth trying again."""

    def __init__(self, cause: str, seconds: int) -> None:
        super().__init__(f"{cause}; try again in {seconds} s")
        self.seconds = seconds


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


def line(body: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
