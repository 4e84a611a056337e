"""A server in this process, on a free port of loopback, and requests to it as clients write them."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import uvicorn
from openai import OpenAI

from pave.model.patched import PatchedModel
from pave.serving.api import create_app
from pave.serving.engine import Engine
from pave.serving.settings import Settings


def inline(path: Path, kind: str = "video/mp4") -> str:
    """A file as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(uri: str, question: str, kind: str = "video_url") -> dict[str, Any]:
    """A user's message about a clip."""
    return {"role": "user", "content": [{"type": kind, kind: {"url": uri}}, {"type": "text", "text": question}]}


@dataclass
class Served:
    """A server and its address."""

    port: int
    engine: Engine
    server: uvicorn.Server

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, **{"max_retries": 0, "timeout": 60, **options}
        )

    def send(self, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        return send(self.port, path, body, **headers)

    def until(self, wanted: Any, seconds: float = 300.0) -> None:
        """Wait until something is the case."""
        end = time.monotonic() + seconds
        while not wanted():
            assert time.monotonic() < end
            time.sleep(0.005)


def send(port: int, path: str, body: Any = None, **headers: str) -> HTTPResponse:
    """One request without a client's library: GET, or POST of bytes or JSON. Its connection closes with the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json"} if data is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if data is None else "POST", path, data, sent)
    return connection.getresponse()


@contextmanager
def served(model: PatchedModel, settings: Settings) -> Iterator[Served]:
    app = create_app(model, settings)
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="on", timeout_graceful_shutdown=300)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(port, app.state.engine, server)
    finally:
        server.should_exit = True
        thread.join(300)
        assert not thread.is_alive()
