"""Run a server until it is told to stop: then it takes no more requests, finishes those that it has, and ends.

In: an app and an address. Out: nothing; a line of JSON on stderr for each request.
"""

from __future__ import annotations

import json
import logging
import socket
import time
import warnings
from collections.abc import Callable
from traceback import extract_tb

import uvicorn
from fastapi import FastAPI

from pave.errors import MediaWarning, UsageError

KEEP_ALIVE = 30  # seconds for which an idle connection stays open


class Lines(logging.Formatter):
    """A record as one line of JSON: time, level, event and facts; an exception by its place, without its values."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        facts: dict[str, object] = {
            "time": f"{when}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        facts |= getattr(record, "facts", {})
        if record.exc_info:
            kind, _, trace = record.exc_info
            facts["error"] = kind.__name__ if kind else ""
            facts["traceback"] = [f"{each.filename}:{each.lineno} {each.name}" for each in extract_tb(trace)]
        return json.dumps(facts, ensure_ascii=False)


def log_lines() -> None:
    """Write the log of this process to stderr, and nothing else."""
    logger, handler = logging.getLogger("pave.serving"), logging.StreamHandler()
    handler.setFormatter(Lines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    warnings.simplefilter("ignore", MediaWarning)  # clients are told; the log is JSON


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
