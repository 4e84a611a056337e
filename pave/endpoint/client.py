"""Requests to an endpoint that speaks OpenAI's chat completions, with a bound on everything.

In: messages. Out: the reply and the tokens that it took. A busy or broken server is tried again: after the time that it
asks for (Retry-After), or after one that doubles. The key comes from the environment, and goes to that endpoint only:
redirects are not followed. Knows nothing of what is asked.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from ipaddress import ip_address
from threading import Lock
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pave.errors import JudgeError, PaveError, UsageError, WriterError
from pave.text.shown import quoted, shortened

Messages = list[dict[str, str]]
Role = Literal["judge", "writer"]  # what the model is asked for
ERRORS: Mapping[Role, type[PaveError]] = {"judge": JudgeError, "writer": WriterError}
KEY = "OPENAI_API_KEY"  # unless the role has its own
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses of a server that may answer later
FIRST, LONGEST = 1.0, 60.0  # seconds between two tries
LARGEST = 1 << 20  # bytes of a reply
PIECE = 1 << 16
# What servers say of a request whose text they do not take: OpenAI, Azure, vLLM, llama.cpp.
UNWANTED = re.compile(r"content[ _-]?(filter|policy|management)|context[ _-]?(length|size)|too (long|large)", re.I)


class _Stay(HTTPRedirectHandler):
    """Follows no redirect: it might lead the key elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Busy(Exception):
    """What was wrong with a try that may be repeated, and after how many seconds the server wants to be asked."""

    def __init__(self, cause: str, after: float | None = None) -> None:
        super().__init__(cause)
        self.after = after


@dataclass(frozen=True)
class Reply:
    """What a model said. `ended`: by itself, at the limit of tokens, or it refused."""

    text: str
    model: str = ""  # as the endpoint names it
    tokens: int | None = None  # of the request and the reply; None: the endpoint does not say
    ended: Literal["stop", "cut", "refused"] = "stop"


class Pace:
    """Lets requests begin at most so many times a minute, evenly spaced, whoever asks; None: at any time."""

    def __init__(self, per_minute: float | None) -> None:
        self.gap = 60 / per_minute if per_minute else 0.0
        self.next, self.lock = 0.0, Lock()

    def wait(self) -> None:
        with self.lock:
            begin = max(time.monotonic(), self.next)
            self.next = begin + self.gap
        if (left := begin - time.monotonic()) > 0:
            time.sleep(left)


@dataclass(frozen=True)
class Chat:
    """An endpoint and a model."""

    url: str
    model: str
    timeout: float  # seconds of one try
    tries: int
    role: Role = "judge"
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})  # further keys of a request
    pace: Pace = field(default_factory=lambda: Pace(None), repr=False, compare=False)  # of tries, too

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:  # of a port that is none
            valid = False
        # The path of chat completions is put behind the address, where a query or a fragment would swallow it.
        if not valid or parts.username is not None or re.search("[?#]", self.url):
            remedy = f"give one as https://api.openai.com/v1, and its key in {self.keys[0]}"
            raise UsageError(f"the {self.role}'s address is not one of an endpoint; {remedy}")
        if self._key() and parts.scheme == "http" and not _local(str(parts.hostname)):
            raise UsageError(f"{self.role} {self.shown}: the key would cross the network unencrypted; use https")

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{parts.hostname}{port}{parts.path}".rstrip("/")

    @property
    def keys(self) -> tuple[str, str]:
        """The variables of the environment that may hold the key; the first that does is taken."""
        return f"PAVE_{self.role.upper()}_KEY", KEY

    def _key(self) -> str:
        return next((value for name in self.keys if (value := os.environ.get(name, "").strip())), "")

    def reply(self, messages: Messages) -> Reply:
        """What the model says; the error of the role if that cannot be had."""
        wait = FIRST
        for left in range(self.tries - 1, -1, -1):
            try:
                return self._once(messages)
            except _Busy as busy:
                if not left:
                    cause = f"{self.role} {self.shown}: {busy}, {self.tries} times"
                    raise ERRORS[self.role](f"{cause}; the same command goes on where it stopped") from None
                time.sleep(min(LONGEST, wait if busy.after is None else busy.after))
                wait *= 2
        raise AssertionError("the last try returns or raises")

    def _once(self, messages: Messages) -> Reply:
        self.pace.wait()
        body = json.dumps({"model": self.model, "messages": messages, **self.options}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if (key := self._key()) else {}
        try:
            # Only http and https come here: see __post_init__.
            with build_opener(_Stay).open(
                Request(f"{self.url.rstrip('/')}/chat/completions", body, headers, method="POST"), timeout=self.timeout
            ) as response:
                data = self._read(response)
        except HTTPError as error:
            with error:
                if (refused := self._refusal(error)) is None:
                    return Reply("", ended="refused")
            raise refused from None
        except (URLError, HTTPException, OSError) as error:
            raise _Busy(f"cannot be reached ({getattr(error, 'reason', error) or type(error).__name__})") from None
        return _content(data)

    def _read(self, response: Any) -> bytes:
        """A body within its bounds of size and of time."""
        begin, data = time.monotonic(), b""
        while piece := response.read1(PIECE):
            data += piece
            if len(data) > LARGEST:
                raise _Busy(f"replies with over {LARGEST:,} bytes")
            if time.monotonic() - begin > self.timeout:
                raise _Busy(f"takes over {self.timeout:g} s for a reply")
        return data

    def _refusal(self, error: HTTPError) -> Exception | None:
        """What an error of the server means; None: that this one request is not taken."""
        try:
            told = error.read(PIECE).decode("utf-8", "replace").strip()
        except (HTTPException, OSError):
            told = ""
        cause = f"answers {error.code} {error.reason}: {shortened(told, 300)}" if told else f"answers {error.code}"
        if error.code in AGAIN:
            return _Busy(cause, _seconds(error.headers.get("Retry-After")))
        if error.code == 413 or (error.code in (400, 422) and UNWANTED.search(told)):
            return None
        known = error.code in (401, 403)
        remedy = f"set its key in {self.keys[0]}" if known else f"check the address and --{self.role}-model"
        return ERRORS[self.role](f"{self.role} {self.shown}: {cause}; {remedy}")


def _content(data: bytes) -> Reply:
    """The reply in a body; without a text if the model said nothing."""
    try:
        value = json.loads(data)
        choice = value["choices"][0]
        message, end = choice["message"], choice.get("finish_reason")
        content, model, refusal = message.get("content"), value.get("model", ""), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Busy(f"replies with no chat completion: {quoted(data[:200])}") from None
    usage = value.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return Reply(
        _written(content),
        _written(model),
        tokens if type(tokens) is int and tokens >= 0 else None,
        "refused" if refusal or end == "content_filter" else "cut" if end == "length" else "stop",
    )


def _written(text: Any) -> str:
    """A text that has a UTF-8 encoding: JSON can hold halves of characters."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""


def _seconds(after: str | None) -> float | None:
    """A Retry-After, of seconds or of a date; None if there is none."""
    try:
        return max(0.0, float(after)) if after else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(str(after)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _local(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
