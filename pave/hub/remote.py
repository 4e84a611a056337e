"""A file behind a web address, read by ranges: only what is needed crosses the network.

In: an http(s) address. Out: its size, and any of its bytes; a read that is cut continues where it stopped. Redirects
are followed, but an access token is never sent on to another host, and https never becomes http. Everything that can go
wrong is a FileError with the address. Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import http.client
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from huggingface_hub import constants

from pave.errors import FileError

STALL = 30.0  # seconds without a byte, after which a connection counts as broken
ATTEMPTS = 5  # in a row without a new byte
PIECE = 1 << 20  # bytes
TAIL = 1 << 20  # bytes at the end of a zip that are read first: its directory
AGAIN = "try again: what has arrived is kept"
Progress = Callable[[int], None]  # called with the number of new bytes


class Remote:
    """An address, its size and its version."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self.address, self.headers = address, dict(headers or {})
        if urlsplit(address).scheme not in ("http", "https"):
            raise FileError(address, "is not an http or https address", "give a web address, or a local file")
        if constants.HF_HUB_OFFLINE:
            raise FileError(address, "has to be downloaded, but offline mode is on", "unset HF_HUB_OFFLINE")
        self._opener = build_opener(_Redirects())
        with self._asked(0, 1) as response:
            content = re.fullmatch(r"bytes 0-0/(\d+)", response.headers.get("Content-Range", ""))
            self.ranges = response.status == 206 and content is not None
            length = content[1] if content else response.headers.get("Content-Length", "")
            self.size = int(length) if length.isdecimal() else 0
            self.version = _version(response)

    def read(self, begin: int, end: int, progress: Progress = lambda count: None) -> bytes:
        """The bytes from `begin` to before `end`; the server must support ranges."""
        data = bytearray()
        for piece in self.pieces(begin, end, progress):
            data += piece
        return bytes(data)

    def pieces(self, begin: int, end: int, progress: Progress = lambda count: None) -> Iterator[bytes]:
        """The same bytes, as they arrive."""
        failures = 0
        while begin < end:
            try:
                with self._asked(begin, end) as response:
                    self._check(response, begin, end)
                    while begin < end and (piece := response.read(min(PIECE, end - begin))):
                        begin, failures = begin + len(piece), 0
                        progress(len(piece))
                        yield piece
                cause = f"the connection ended {end - begin:,} bytes early"
            except (http.client.HTTPException, OSError) as error:  # cut, stalled, reset
                cause = f"the connection broke ({type(error).__name__}: {error})"
            if begin < end:
                failures = self._rest(failures, cause)

    def stream(self) -> Iterator[bytes]:
        """All bytes, from a server that does not support ranges."""
        try:
            with self._asked(0, max(1, self.size)) as response:
                while piece := response.read(PIECE):
                    yield piece
        except (http.client.HTTPException, OSError) as error:
            cause = f"the connection broke ({type(error).__name__}: {error})"
            raise FileError(self.address, cause, "try again from the start: this server cannot resume") from None

    def _asked(self, begin: int, end: int) -> Any:
        """The response to a request for a range; another status than 200 and 206 is an error, or asked again."""
        failures = 0
        while True:
            request = Request(self.address, headers={"Range": f"bytes={begin}-{end - 1}", "User-Agent": "pave"})
            for name, text in self.headers.items():
                request.add_unredirected_header(name, text)
            try:
                return self._opener.open(request, timeout=STALL)
            except HTTPError as error:
                error.close()
                if error.code not in (408, 429) and error.code < 500:
                    raise FileError(
                        self.address, f"the server answers {error.code} {error.reason}", _remedy(error)
                    ) from None
                cause = f"the server answers {error.code} {error.reason}"
            except (URLError, http.client.HTTPException, OSError) as error:
                reason = getattr(error, "reason", error)
                cause = f"cannot be reached ({reason})"
            failures = self._rest(failures, cause)

    def _check(self, response: Any, begin: int, end: int) -> None:
        given = response.headers.get("Content-Range", "")
        if response.status != 206 or not given.startswith(f"bytes {begin}-"):
            cause = f"the server answers {response.status} {given!r} to a request for bytes {begin}-{end - 1}"
            raise FileError(self.address, cause, "use a server that supports ranges, or download the file yourself")
        if _version(response) != self.version:
            raise FileError(self.address, "changed on the server during the download", "start again")

    def _rest(self, failures: int, cause: str) -> int:
        """Wait before the next attempt; an error after the last one."""
        if failures + 1 >= ATTEMPTS:
            raise FileError(self.address, f"{cause}, {ATTEMPTS} times in a row", AGAIN)
        time.sleep(2**failures)
        return failures + 1


class RangeFile(io.RawIOBase):
    """A remote file to seek and read in, as `zipfile` does. A read outside the last prefetched range is one more
    request."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self.place = remote, 0
        self.prefetch(max(0, remote.size - TAIL), remote.size)

    def prefetch(self, begin: int, end: int, progress: Progress = lambda count: None) -> None:
        """Have these bytes ready."""
        self.begin, self.data = begin, self.remote.read(begin, min(end, self.remote.size), progress)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.remote.size}[whence]
        if start + offset < 0:
            raise OSError("seek before the start")
        self.place = start + offset
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        end = self.remote.size if size < 0 else min(self.place + size, self.remote.size)
        if self.place < self.begin or end > self.begin + len(self.data):
            self.prefetch(self.place, end)
        found = self.data[self.place - self.begin : end - self.begin]
        self.place = max(self.place, end)
        return found


class _Redirects(HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise HTTPError(newurl, code, "redirects from https to an unencrypted address", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _version(response: Any) -> str:
    """What changes when the file on the server changes."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _remedy(error: HTTPError) -> str:
    if error.code in (401, 403):
        return "you have no access: accept the terms on its page, or log in with `hf auth login`"
    return "check the address; it may have moved"
