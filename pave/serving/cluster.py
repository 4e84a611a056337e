"""A server on many machines: an application of Ray Serve with the routes of the server of one process.

    pave serve playroom --engine ray --replicas 2        # or: serve run pave.serving:app base=playroom replicas=2

In: what the replicas serve. Out: an application of two deployments, the replicas (replica.py) and one front. The front
passes requests on and the answers back, keeps the list of the patches that all have, and tells the client if the
replica that was answering has died. All machines need the base, the patches and the media folder under the same paths.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator
from ray import serve  # pyright: ignore[reportMissingImports]
from ray.exceptions import RayActorError  # pyright: ignore[reportMissingImports]
from ray.serve.exceptions import DeploymentUnavailableError  # pyright: ignore[reportMissingImports]
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pave.errors import PaveError, UsageError
from pave.serving.failures import Denied, failed, line
from pave.serving.gate import Gate
from pave.serving.log import Logged, log, log_lines, refused
from pave.serving.metrics import TYPE, Merged, Metrics
from pave.serving.replica import Held, Replica, Spec
from pave.serving.run import KEEP_ALIVE, url_of
from pave.serving.settings import SHOWN, Settings, keys_of, server_name

NAME = "pave"  # of the application
SPARE = 16  # requests to a replica beside those that it answers: for 429, /v1/models, the page
SECONDS = 30.0  # in which all replicas tell their state
PASSED_ON = 2.0  # seconds in which Ray's proxy hands on the end of the last answers; Ray itself waits as long
LOST = (RayActorError, DeploymentUnavailableError)
SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client", "server")


class Front:
    """Passes requests on. There is one, so that all changes of patches have one order; it holds no model."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        log_lines()
        self.replicas, self.gate, self.metrics = replicas, Gate(settings), Metrics()
        self._held: tuple[int, Held] | None = None  # version, patches of all replicas; None: they have not been asked
        self._changing, self._changes = asyncio.Lock(), set[asyncio.Task[Response]]()
        self._working, self._stopping = 0, False  # requests on their way; whether no more are taken

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The routes; Ray Serve asks for them."""
        passed = _Passed(self)
        routes = [
            Route("/v1/load_patch", self.load, methods=["POST"]),
            Route("/v1/unload_patch", self.unload, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.figures),
            Route("/v1/chat/completions", passed),
            Route("/v1/explain", passed),
            Mount("/", passed),
        ]
        app = Starlette(routes=routes, exception_handlers={PaveError: refused, HTTPException: refused})
        app.add_middleware(Logged, metrics=self.metrics, named=True)
        return app

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, a request is on its way, which `stop` waits for."""
        if self._stopping:
            raise Denied(503, "stopping", "this server is stopping; ask another, or again", seconds=5)
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    async def stop(self) -> None:
        """Take no more requests, and wait until those that are here have ended."""
        self._stopping = True
        while self._working:
            await asyncio.sleep(0.1)

    async def held(self) -> tuple[int, Held]:
        """The patches that all replicas have. A new front takes those of the furthest, for all."""
        if self._held is None:
            async with self._changing:
                if self._held is None:
                    version, held = max(await self.all("held"), key=lambda each: each[0])
                    self._held = version + 1, held
        return self._held

    async def all(self, method: str, *given: Any, seconds: float | None = SECONDS) -> list[Any]:
        """What each replica says, but those that die meanwhile."""
        try:
            response = self.replicas.broadcast(method, *given)
            told = await response.results_async(timeout_s=seconds, return_exceptions=True)
        except DeploymentUnavailableError:
            told = []
        except TimeoutError:
            raise Denied(503, "replica_slow", f"a replica has not answered in {seconds:g} s; ask again", 1) from None
        for each in told:
            if isinstance(each, BaseException) and not isinstance(each, LOST):
                raise each
        told = [each for each in told if not isinstance(each, BaseException)]
        if not told:
            raise Denied(503, "no_replica", "no replica is running; ask again", seconds=1)
        return told

    # Patches

    async def load(self, request: Request) -> Response:
        source, name = await self.gate.source(request)
        return await self._change("load", source, name)

    async def unload(self, request: Request) -> Response:
        return await self._change("unload", await self.gate.name(request))

    async def _change(self, method: str, *given: str | None) -> Response:
        """Change the patches of all replicas or of none, also if the operator leaves meanwhile."""

        async def change() -> Response:
            with self.working():
                return await self._changed(method, *given)

        task = Context().run(asyncio.create_task, change())  # Ray cancels the calls of the context of a request
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _changed(self, method: str, *given: str | None) -> Response:
        """A new version of the list, which each replica adopts before its next request if it is not there yet, or has
        gone further."""
        await self.held()
        async with self._changing:
            assert self._held is not None
            version, before = self._held
            after = before
            try:
                told = await self.all(method, version, before, *given, seconds=None)
                status, body = max(told, key=lambda each: each[0])
                if len({body.get("sha256") for _, body in told}) > 1 and status == 200:
                    cause = f"{given[0]} is not the same patch on all machines; copy the same file to all"
                    status, body = failed(Denied(400, "patches_differ", cause))
                if status == 200:
                    name = body["id"].rpartition("+")[2]
                    after = {each: known for each, known in before.items() if each != name}
                    after |= {name: (given[0], body["sha256"])} if method == "load" else {}
                return JSONResponse(body, status)
            finally:  # also if no replica is left
                self._held = version + 1, after

    # State

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        free = not self._stopping and any(await self.all("ready"))
        return JSONResponse({"status": "ready" if free else "busy"}, 200 if free else 503)

    async def figures(self, request: Request) -> Response:
        texts = {"front": self.metrics.text().decode(), **dict(await self.all("figures"))}
        return Response(Merged(texts).text(), media_type=TYPE)


@dataclass(frozen=True)
class _Passed:
    """A request that a replica answers. If it dies before the answer has begun, another is asked, once; after that the
    client gets an error, in a stream as its last event."""

    front: Front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with self.front.working(), self.front.gate.holding(request):
            await self._pass(request, scope, send)

    async def _pass(self, request: Request, scope: Scope, send: Send) -> None:
        front, body = self.front, b""
        if scope["method"] == "POST":
            front.gate.refuse_strangers(request)
            body = bytes(await front.gate.body(request, front.gate.most))
        kept = {name: scope[name] for name in SCOPE}
        lost = Denied(503, "replica_lost", "the replica that was answering has died; ask again", seconds=1)
        for _ in range(2):
            response = front.replicas.options(stream=True).answer.remote(kept, body, *await front.held())
            start = streams = None  # the first message, while it waits for the second; whether it is a stream
            more, reason = True, "its answer has no end"
            try:
                async for message in response:
                    if message["type"] == "http.response.start":
                        start = message
                        continue
                    if start:
                        streams = any(value.startswith(b"text/event-stream") for _, value in start["headers"])
                        await send(start)
                    await send(message)
                    start, more = None, message.get("more_body", False)
            except LOST as error:
                reason = type(error).__name__
            finally:
                response.cancel()
            if not more:
                return
            log.warning("replica lost", extra={"facts": {"reason": reason}})
            if streams:
                return await send({"type": "http.response.body", "body": line(failed(lost)[1]).encode()})
            if streams is False:
                raise lost
        raise lost


def application(spec: Spec) -> Any:
    """The application for Ray Serve. Each replica takes `spec.gpus`, or else a CPU core."""
    gpus = _gpus() if spec.gpus is None else spec.gpus
    limits, most = spec.settings.limits, max(spec.replicas, spec.most or 0)
    places = limits.waiting + SPARE
    replicas = serve.deployment(
        Replica,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 0} if gpus else {"num_cpus": 1},
        max_ongoing_requests=places,
        graceful_shutdown_timeout_s=spec.stopping,
        max_constructor_retry_count=1,
        autoscaling_config={
            "min_replicas": spec.replicas,
            "max_replicas": most,
            "target_ongoing_requests": limits.rows,
        },
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=places * most,
        graceful_shutdown_timeout_s=spec.stopping,
    )
    return front.bind(replicas.bind(spec), spec.settings)


def _gpus() -> int:
    """One if the cluster has any. `serve run` asks before it has joined the cluster: then this machine decides."""
    if ray.is_initialized():
        return int("GPU" in ray.cluster_resources())
    import torch

    return int(torch.cuda.is_available())


class Options(BaseModel):
    """What `serve run pave.serving:app` takes, as name=value or in a configuration file."""

    base: str = "playroom"
    patches: list[str] = Field(default_factory=list)  # or one text, with commas between them
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    gpus: int | None = Field(None, ge=0)  # of each replica; default: one where there are any
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("patches", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return given.split(",") if isinstance(given, str) else given


def app(given: dict[str, Any]) -> Any:
    """The application for `serve run` and `serve deploy`. Keys are those of PAVE_API_KEY and PAVE_ADMIN_KEY."""
    options = Options.model_validate(given)
    keys, admin = keys_of(os.environ.get("PAVE_API_KEY")), os.environ.get("PAVE_ADMIN_KEY")
    patches = tuple(options.patches) or (SHOWN if options.base == "playroom" else ())
    settings = Settings(server_name(options.base), keys, admin)
    spec = Spec(options.base, patches, settings, options.replicas, options.max_replicas, options.gpus)
    return application(spec)


def serve_on_ray(spec: Spec, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve until SIGTERM or Ctrl-C, on the cluster of the environment, or on this machine.

    port: 0 takes a free one. ready: called with the address."""
    own = _begun()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if not port:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
    serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE})
    try:
        front = serve.run(application(spec), name=NAME)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise UsageError(f"the replicas do not start: {last}") from error
    told = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: told.set())
    ready(url_of(host, port))
    told.wait()
    with suppress(TimeoutError, *LOST):
        front.stop.remote().result(timeout_s=spec.stopping)
    if own:  # without the application, Ray's proxy would answer 404 until it ends, too
        time.sleep(PASSED_ON)
    else:
        with suppress(TimeoutError):  # the cluster goes on with it
            serve.delete(NAME)
    ray.shutdown()


def _begun() -> bool:
    """Join the cluster of the environment. Without one, begin one on this machine, and return True."""
    how: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if not ray.is_initialized():
        try:
            ray.init(resources={}, **how)  # which Ray refuses where it would join
            return True
        except ValueError:
            ray.init(**how)
    return False
