"""Run a server until it is told to stop: then it takes no more requests, finishes those that it has, and ends.

In: an app and an address. Out: nothing; a line of JSON on stderr for each request.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from pave.errors import UsageError
from pave.serving.log import log_lines

KEEP_ALIVE = 30  # seconds for which an idle connection stays open


def url_of(host: str, port: int) -> str:
    """The address of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, host: str, port: int, stopping: float, ready: Callable[[str], object]) -> None:
    """Serve until SIGTERM or Ctrl-C. port: 0 takes a free one. stopping: seconds in which running answers may end.
    ready: called with the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # from now on connections wait, and none is refused
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(f"{host}:{port} cannot be served ({error}); choose another --host or --port") from None
    log_lines()
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=round(stopping),
    )
    ready(url_of(host, bound.getsockname()[1]))
    uvicorn.Server(config).run(sockets=[bound])
