"""A local Hugging Face Hub, for the real `huggingface_hub` client, with a log and injected faults.

    with HubServer() as hub, hub.client(tmp_path) as api:
        hub.create("tester/ears", {"patch.safetensors": weights})
        hub.fail("cut", "*.safetensors", at=1000, times=2)
        api.hf_hub_download("tester/ears", "patch.safetensors")
        assert [one.sent for one in hub.asked("GET", "*.safetensors")] == [1000, 1000, len(weights)]

In: repositories, from Python or from the client. Out: the responses of `hub_endpoints` over HTTP, intact or with the
faults that a test injects. Knows nothing of PAVE.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hub_endpoints import LARGE, Hub, Request, Response, respond
from huggingface_hub import HfApi, close_session, constants

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
FAULTS = {"flip", "short", "long", "lie_length", "cut", "reset", "slow", "hang", "status", "html", "lfs_pointer"}
FAULTS |= {"noetag", "etag_change", "moved"}


@dataclass
class Fault:
    """A fault in the next `times` responses to `method` for paths like `match`, and its options."""

    kind: str
    match: str = "*"
    method: str = "GET"
    times: int = 1
    by: int = 1  # short, long, lie_length: bytes
    at: int = 0  # cut, reset: bytes of the body after which the connection closes
    seconds: float = 60.0  # slow: duration of the body; hang: until the connection closes
    code: int = 500  # status
    retry_after: int | None = None  # status: seconds
    move: Callable[[], object] = lambda: None  # moved: called between this response and the next request

    def meets(self, method: str, path: str) -> bool:
        # A redirect has no file: the fault waits for the response that does.
        redirect = method == "GET" and "/resolve/" in path and path.endswith(LARGE)
        return self.times > 0 and not redirect and fnmatchcase(method, self.method) and fnmatchcase(path, self.match)

    def spoil(self, response: Response) -> None:
        """Apply faults of the content; those of the connection are in `Handler._send`."""
        body, headers = response.body, response.headers
        match self.kind:
            case "flip":
                response.body = body[:-1] + bytes(byte ^ 1 for byte in body[-1:])
            case "short":
                response.body = body[: -self.by]
            case "long":
                response.body = body + bytes(self.by)
            case "status":
                response.status = self.code
                response.headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
            case "html":
                page = b"<html>Welcome. Please sign in.</html>"
                response.status, response.body, response.headers = 200, page, {"Content-Type": "text/html"}
            case "lfs_pointer" if response.file:
                response.body = response.file.pointer.encode()
                headers |= {"X-Linked-Size": str(len(response.body))} if "X-Linked-Size" in headers else {}
            case "noetag":
                response.headers = {name: text for name, text in headers.items() if not name.lower().endswith("etag")}
            case "etag_change":
                for name in headers.keys() & {"ETag", "X-Linked-Etag"}:
                    headers[name] = f'"{hashlib.sha256(headers[name].encode()).hexdigest()}"'
            case "moved":
                self.move()


class Handler(BaseHTTPRequestHandler):
    hub: HubServer  # each server creates its own handler class
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: Nagle's algorithm would delay the second by 40 ms

    def handle(self) -> None:
        self.hub._open.add(self.connection)
        with suppress(ConnectionError):  # a client may disconnect
            super().handle()
        self.hub._open.discard(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url, token = urlsplit(self.path), self.headers.get("Authorization", "").removeprefix("Bearer ")
        asked = (self.command, unquote(url.path), self.headers.get("Range"))
        request = Request(*asked, hub=self.hub, query=parse_qs(url.query), token=token, body=body)
        with self.hub._lock:
            self.hub.log.append(request)
            fault = next((one for one in self.hub.faults if one.meets(request.method, request.path)), None)
            response = Response() if fault and fault.kind == "status" else respond(request, url.path)
            if fault:
                fault.times -= 1
                fault.spoil(response)
        self._send(response, request, fault or Fault(""))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _send(self, response: Response, request: Request, fault: Fault) -> None:
        kind, body = fault.kind, b"" if self.command == "HEAD" else response.body
        self.close_connection = kind in ("hang", "cut", "reset", "lie_length")
        if kind == "hang":
            self.hub._closing.wait(fault.seconds)
            return
        length = str(len(response.body) + (fault.by if kind == "lie_length" else 0))
        body = body[: fault.at] if kind in ("cut", "reset") else body
        request.status, request.sent = (
            response.status,
            len(body),
        )  # before sending: the test may read the log as soon as the client returns
        self.send_response(response.status)
        for name, text in {**response.headers, "Content-Length": length}.items():
            self.send_header(name, text)
        self.end_headers()
        step = len(body) // 10 + 1 if kind == "slow" else len(body) or 1
        for begin in range(0, len(body), step):
            self.hub._closing.wait(fault.seconds / 10 if kind == "slow" else 0)
            self.wfile.write(body[begin : begin + step])
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # it shares the socket, which closes only with its last user
            self.connection.close()


class HubServer(Hub):
    """The hub on a local port, with a log, faults and clients."""

    def __init__(self) -> None:
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        port = self._listener.server_port
        super().__init__(f"http://127.0.0.1:{port}", f"http://localhost:{port}/store")
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.waits: list[float] = []  # seconds that the client in this process would have waited
        self._lock, self._closing = threading.RLock(), threading.Event()
        self._open: set[socket.socket] = set()

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close immediately, including connections that clients keep open."""
        self._closing.set()
        self._listener.shutdown()
        self._listener.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def fail(self, kind: str, match: str = "*", **options: Any) -> Fault:
        """Inject a fault into the next response; see `Fault`. Its `times` counts down."""
        assert kind in FAULTS, f"{kind} is not one of {FAULTS}"
        options.setdefault("method", "HEAD" if "etag" in kind else "GET")  # the client reads the etag from HEAD
        fault = Fault(kind, match, **options)
        self.faults.append(fault)
        return fault

    def asked(self, method: str = "*", match: str = "*") -> list[Request]:
        return [one for one in self.log if fnmatchcase(one.method, method) and fnmatchcase(one.path, match)]

    @contextmanager
    def client(self, home: Path, token: str | None = "hf_test", timeout: float = 5) -> Iterator[HfApi]:
        """Within the block, huggingface_hub in this process uses this hub and stores its files in `home`. It retries
        without waiting; `waits` has the seconds that it would have waited."""
        settings = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_ETAG_TIMEOUT": timeout,
            "HF_HUB_DOWNLOAD_TIMEOUT": timeout,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        rest = time.sleep
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setattr(constants, name, value, raising=False)
            patch.setenv("HF_TOKEN", token or "")
            for name in (proxies := [name for name in os.environ if name.lower() in PROXIES]):
                patch.delenv(name)
            patch.setattr(time, "sleep", lambda seconds: self.waits.append(seconds) or rest(min(seconds, 0.01)))
            if proxies:
                close_session()  # the session has cached the proxies; only then, because a new one takes 0.3 s
            yield HfApi()
        if proxies:
            close_session()

    def run(self, home: Path, code: str, **environment: str) -> Any:
        """The JSON output of a new Python process whose huggingface_hub uses this hub."""
        inherited = {name: text for name, text in os.environ.items() if name.lower() not in PROXIES}
        inherited = {name: text for name, text in inherited.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        switches = {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")}
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "hf_test", **switches, **environment}
        command = [sys.executable, "-c", dedent(code)]
        done = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
