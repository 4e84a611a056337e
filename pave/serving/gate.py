"""Who may ask, and the bodies of requests.

In: requests and the settings of a server. Out: JSON, or an error that says what is missing. A body is read after the
key of its request has been checked, within a limit of bytes and of time. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from pave.serving.failures import Busy, Denied, Refused
from pave.serving.remote import is_address
from pave.serving.settings import Settings
from pave.text.shown import quoted

ADMIN_BYTES = 1 << 16  # of a request about patches
TEXT_BYTES = 8 << 20  # of a request beside its media
PARTS = 1 << 20  # of the JSON of a request: parsed, one may take 100 times the bytes that it has in the text
GONE = "the client has gone"


class Gate:
    """What requests of one server must fulfil."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.most = TEXT_BYTES + 2 * (settings.limits.clip_bytes * 4 // 3)  # bytes of a request with media
        self._held = 0  # bytes of the requests that are being answered

    def refuse_strangers(self, request: Request) -> None:
        keys, key = self.settings.keys, _key(request).encode()
        if keys and not any(hmac.compare_digest(key, each.encode()) for each in keys):
            raise Denied(401, "invalid_api_key", "this server needs a key, as Authorization: Bearer KEY")
        host = request.url.hostname or ""
        if not keys and not is_local(host):
            cause = f"without keys, this server does not answer as {quoted(host)}"
            raise Denied(403, "forbidden_host", f"{cause}; ask for its address or localhost, or set PAVE_API_KEY")

    @contextmanager
    def holding(self, request: Request) -> Iterator[None]:
        """Within the block, the bytes of a request count among those that all requests may have together."""
        request.state.bytes = 0
        try:
            yield
        finally:
            self._held -= request.state.bytes

    async def source(self, request: Request) -> tuple[str, str | None]:
        """Which patch an operator loads, and under which name."""
        source, name = await self._named(request, ("source", "name"))
        if source is None:
            raise Refused("source", "is missing; name a patch of the catalogue, a folder, a file, or user/repo")
        return source, name

    async def name(self, request: Request) -> str:
        """Which patch an operator unloads."""
        (name,) = await self._named(request, ("name",))
        if name is None:
            raise Refused("name", "is missing; it is the last part of the model's id")
        return name

    async def _named(self, request: Request, fields: Sequence[str]) -> list[str | None]:
        """Fields of a request of the operator."""
        if self.settings.admin is None:
            raise Denied(
                403, "disabled", "patches are fixed; start the server with --admin-key to load and unload them"
            )
        if not hmac.compare_digest(_key(request).encode(), self.settings.admin.encode()):
            raise Denied(401, "invalid_api_key", "this needs the admin key, as Authorization: Bearer KEY")
        body = await self.json(request, ADMIN_BYTES)
        body = body if isinstance(body, dict) else {"": body}
        for name, value in body.items():
            if name not in fields or not isinstance(value, str | None):
                raise Refused(name, f"is not expected, or no text; send {' and '.join(fields)}")
        return [body.get(name) for name in fields]

    async def json(self, request: Request, most: int) -> Any:
        """The body of a request. Its type must be JSON: web pages of others can send only plain text unasked."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Denied(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
        body = await self.body(request, most)
        if (parts := sum(body.count(each) for each in b"{[,")) > PARTS:
            raise Denied(413, "too_large", f"the JSON has about {parts:,} parts; send at most {PARTS:,}")
        try:
            return await asyncio.to_thread(json.loads, body)
        except (ValueError, RecursionError) as error:
            cause = error if isinstance(error, ValueError) else "nested too deeply"
            raise Denied(400, "invalid_json", f"the body is not valid JSON ({cause}); send an object") from None

    async def body(self, request: Request, most: int) -> bytearray:
        """The bytes of a request."""
        seconds = self.settings.limits.upload
        try:
            return await asyncio.wait_for(self._received(request, most), seconds)
        except ClientDisconnect:
            raise Denied(499, "client_gone", GONE) from None
        except asyncio.TimeoutError:
            raise Denied(408, "too_slow", f"the request took more than {seconds:g} s; send a smaller clip") from None

    async def _received(self, request: Request, most: int) -> bytearray:
        body = bytearray()
        announced = request.headers.get("content-length", "")
        if not (announced.isdecimal() and int(announced) > most):
            async for piece in request.stream():
                body += piece
                self._hold(request, len(piece))
                if len(body) > most:
                    break
            else:
                return body
        raise Denied(413, "too_large", f"the request has more than {most:,} bytes; send a smaller clip")

    def _hold(self, request: Request, count: int) -> None:
        if not hasattr(request.state, "bytes"):  # of an operator
            return
        request.state.bytes += count
        self._held += count
        if self._held > max(self.settings.limits.uploads, self.most):  # one alone may always have what it may have
            raise Busy(f"requests of {self._held:,} bytes are being answered or wait", 1)


def is_local(host: str) -> bool:
    """Whether the host of a request is an address, or a name that no public name server gives. A web page of others can
    lead its own name to this machine (DNS rebinding), and so reach a server that asks for no key."""
    return is_address(host) or "." not in host or host.endswith((".localhost", ".local", ".internal"))


def _key(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
