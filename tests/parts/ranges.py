"""A web server with one file on the loopback, by ranges or as a whole, and with the faults that a test asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        web, asked = self.web, self.headers.get("Range", "")
        web.seen.append((self.path, asked, self.headers.get("Authorization", "")))
        if self.path.startswith("/to/"):
            self.answer(302, b"", Location=self.path[4:])
        elif self.path != "/file":
            self.answer(404, b"gone")
        elif len(web.seen) > web.calm and web.faults:
            web.faults.pop(0)(self)
        else:
            self.send()

    def send(self, *, cut: int | None = None, slow: float = 0, **headers: str) -> None:
        """The bytes that were asked for; cut: only so many of them."""
        web, asked = self.web, self.headers.get("Range", "")
        if not (web.ranges and asked):
            return self.answer(200, web.data, cut=cut, slow=slow, **headers)
        begin, end = map(int, asked.removeprefix("bytes=").split("-"))
        body = web.data[begin : end + 1]
        shown = f"bytes {begin}-{begin + len(body) - 1}/{len(web.data)}"
        return self.answer(206, body, cut=cut, slow=slow, **{"Content-Range": shown, **headers})

    def answer(self, status: int, body: bytes, *, cut: int | None = None, slow: float = 0, **headers: str) -> None:
        self.send_response(status)
        for name, text in {"ETag": self.web.etag, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        for i in range(0, len(body[:cut]), 4096):
            time.sleep(slow)
            self.wfile.write(body[:cut][i : i + 4096])
        self.close_connection = cut is not None


class Web:
    """The server; a context manager."""

    def __init__(self, data: bytes) -> None:
        self.data, self.etag, self.ranges = data, '"one"', True
        self.faults: list[Fault] = []  # of the next requests, one each
        self.calm = 0  # requests before the first fault
        self.seen: list[tuple[str, str, str]] = []  # path, Range, Authorization
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"web": self}))
        self.root = f"http://127.0.0.1:{self.http.server_port}"
        self.address = f"{self.root}/file"

    def __enter__(self) -> Web:
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def sent(self) -> int:
        """Bytes asked for by range."""
        spans = [asked.removeprefix("bytes=").split("-") for _, asked, _ in self.seen if asked]
        return sum(int(end) - int(begin) + 1 for begin, end in spans)
