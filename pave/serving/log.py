"""The log and the count of requests: a line of JSON for each, without what was asked and answered; errors as answers.

In: requests on their way to an application. Out: lines on stderr, figures, and the JSON of what failed.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
import warnings
from traceback import extract_tb

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pave.errors import MediaWarning
from pave.serving.failures import Denied, failed
from pave.serving.metrics import Metrics

log = logging.getLogger("pave.serving")


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


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that failed."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):  # of the routes
        headers |= error.headers or {}  # which methods there are, for 405
        code = "not_found" if error.status_code == 404 else "refused"
        error = Denied(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    status, body = failed(error)
    request.state.reason = body["error"]["code"]
    seconds = getattr(error, "seconds", None)
    headers |= {} if seconds is None else {"retry-after": str(seconds)}
    headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(body, status, headers=headers)


class Logged:
    """Gives each request an id, counts it, and logs how it ended.

    named: a proxy has given it one, and tells the client."""

    def __init__(self, app: ASGIApp, metrics: Metrics, named: bool) -> None:
        self.app, self.metrics, self.named = app, metrics, named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, begin, status = Request(scope, receive), time.monotonic(), 0
        id = request.headers.get("x-request-id", "") if self.named else f"req-{uuid.uuid4().hex}"
        error = None

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [] if self.named else [(b"x-request-id", id.encode())]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception as caught:
            error = caught
            request.state.reason = type(caught).__name__
            if not status:
                await (await refused(request, caught))(scope, receive, named)
        finally:
            path = getattr(scope.get("route"), "path", "") or "other"
            self.metrics.requests.labels(path, str(status)).inc()
            facts = {"request": id, "method": scope["method"], "path": path, "status": status}
            facts |= {"seconds": round(time.monotonic() - begin, 4), **getattr(request.state, "facts", {})}
            facts |= {"reason": reason} if (reason := getattr(request.state, "reason", None)) else {}
            if error is not None:
                log.error("failed", exc_info=error, extra={"facts": facts})
            elif path not in ("/health", "/ready", "/metrics"):
                log.info("request", extra={"facts": facts})
