"""A real server on this machine that speaks OpenAI's chat completions as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


def completion(text: Any, model: str = "judge-1-2026", finish: str = "stop", tokens: int | None = None) -> bytes:
    """The body of a reply. tokens: of request and reply, if the server counts them."""
    message = {"role": "assistant", "content": text}
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return json.dumps({"model": model, "choices": [{"message": message, "finish_reason": finish}], **usage}).encode()


class Endpoint(ThreadingHTTPServer):
    """Answers requests as a test says, and keeps them."""

    daemon_threads = True

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answer = answer
        self.slow = 0.0  # seconds between two pieces of a body

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, headers, data = self.server.answer(len(self.server.asked), body)
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            size = 1 if self.server.slow else max(1, len(data))
            for begin in range(0, len(data), size):
                if self.server.slow:
                    time.sleep(self.server.slow)
                self.wfile.write(data[begin : begin + size])
        except OSError:  # the client has gone
            return

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[Endpoint]:
    """A server for the block."""
    with Endpoint(answer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
