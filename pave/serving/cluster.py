"""A server on many machines: an application of Ray Serve with the routes of the server of one process.

    pave serve playroom --engine ray --replicas 2        # or: serve run pave.serving:app base=playroom replicas=2

In: what the replicas serve. Out: an application of two deployments. Each `Replica` is a process with the base, all
patches and the server of api.py. One `Front` passes requests on to them and the answers back, keeps the list of the
patches that all have, and tells the client if the replica that was answering has died. All machines need the base, the
patches and the media folder under the same paths.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pave.errors import PatchMismatch, PaveError, UsageError
from pave.model.patched import load
from pave.serving.api import Logged, create_app, refused
from pave.serving.gate import Gate
from pave.serving.metrics import TYPE, Merged, Metrics
from pave.serving.replies import Denied, failed, line
from pave.serving.run import KEEP_ALIVE, log_lines, url_of
from pave.serving.settings import SHOWN, Settings, keys_of, server_name

NAME = "pave"  # of the application
SPARE = 16  # requests to a replica beside those that it answers: for 429, /v1/models, the page
SECONDS = 10.0  # in which a replica tells its state
LOST = (RayActorError, DeploymentUnavailableError)
SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client", "server")
Held = Mapping[str, tuple[str, str]]  # name of a patch -> its source and sha256
Told = tuple[int, dict[str, Any]]  # status and body

log = logging.getLogger("pave.serving")


@dataclass(frozen=True)
class Spec:
    """What the replicas serve, and how many there are."""

    base: str
    patches: tuple[str, ...]
    settings: Settings
    replicas: int = 1
    most: int | None = None  # replicas under load; None: no more than `replicas`
    dtype: str = "auto"
    device: str = "auto"
    frames: int | None = None
    stopping: float = 60.0  # seconds in which running answers may end
    folder: str = field(default_factory=os.getcwd)  # that relative paths begin in


class Replica:
    """A server without an address."""

    def __init__(self, spec: Spec) -> None:
        os.chdir(spec.folder)  # Ray begins in a folder of its own
        log_lines()
        self.id = serve.get_replica_context().replica_id.unique_id
        model = load(spec.base, dtype=spec.dtype, device=spec.device, frames=spec.frames)
        self._sources = {model.apply_patch(source).name: source for source in spec.patches}
        self.app = create_app(model, spec.settings, named=True)
        self.front, self.engine = self.app.state.front, self.app.state.engine
        self._version, self._changing = 0, threading.Lock()  # of the patches; one change at a time
        self._running: set[asyncio.Task[None]] = set()

    async def answer(self, scope: Scope, body: bytes, version: int, held: Held) -> AsyncIterator[Message]:
        """The messages of the answer to a request, whose client has gone when the caller cancels."""
        app: ASGIApp = self.app
        try:
            await self._adopt(version, held)
        except PaveError as error:
            app = await refused(Request(scope), Denied(503, "patches_differ", str(error)))
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        left, gone = [{"type": "http.request", "body": body, "more_body": False}], asyncio.Event()

        async def receive() -> Message:
            if left:
                return left.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await app(scope, receive, messages.put)
            finally:
                await messages.put(None)

        task = asyncio.create_task(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            gone.set()

    # Patches

    async def held(self) -> tuple[int, Held]:
        """The patches of this replica, and their version."""
        reports = self.engine.patches
        return self._version, {name: (self._sources[name], report.sha256) for name, report in reports.items()}

    async def load(self, version: int, held: Held, source: str, name: str | None) -> Told:
        """Load a patch beside these. Says what the route of api.py says."""

        def loaded() -> dict[str, Any]:
            with self._changing:
                report = self.engine.load(source, name)
                self._sources[report.name] = source
            return self.front.described((report.name,), report)

        return await self._told(version, held, loaded)

    async def unload(self, version: int, held: Held, name: str) -> Told:
        """Unload one of these patches, after the requests that use it. Says what the route of api.py says."""

        def unloaded() -> dict[str, Any]:
            with self._changing:
                self.engine.unload(name)
            return self.front.deleted(name)

        return await self._told(version, held, unloaded)

    async def _told(self, version: int, held: Held, change: Any) -> Told:
        try:
            await self._adopt(version, held)
            return 200, await asyncio.to_thread(change)
        except Exception as error:
            return failed(error)

    async def _adopt(self, version: int, held: Held) -> None:
        """Have these patches and no others, if they are newer."""
        if version > self._version:
            await asyncio.to_thread(self._exchange, version, held)

    def _exchange(self, version: int, held: Held) -> None:
        with self._changing:
            if version <= self._version:
                return
            for name, report in self.engine.patches.items():
                if name not in held or held[name][1] != report.sha256:
                    self.engine.unload(name)
            for name in [name for name in held if name not in self.engine.patches]:
                source, sha256 = held[name]
                report = self.engine.load(source, name)
                if report.sha256 != sha256:
                    self.engine.unload(name)
                    cause = f"has sha256 {report.sha256[:16]} here, and {sha256[:16]} on the other replicas"
                    raise PatchMismatch(source, cause, "copy the same file to all machines")
                self._sources[name] = source
            self._version = version

    # State

    async def ready(self) -> bool:
        """Whether it takes requests."""
        return not self.engine.full

    async def figures(self) -> tuple[str, str]:
        """Its name and its metrics."""
        return self.id, self.front.text().decode()


class Front:
    """Passes requests on. There is one, so that all changes of patches have one order; it holds no model."""

    def __init__(self, replicas: Any, settings: Settings) -> None:
        log_lines()
        self.replicas, self.settings, self.gate, self.metrics = replicas, settings, Gate(settings), Metrics()
        self._held: tuple[int, Held] | None = None  # version, patches of all replicas; None: they have not been asked
        self._changing = asyncio.Lock()

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
        """Change the patches of all replicas or of none: a new version of the list, which each adopts before its next
        request if it is not there yet, or has gone further."""
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
            finally:  # also if the operator has left
                self._held = version + 1, after

    # State

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        free = any(await self.all("ready"))
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
        front, request, body = self.front, Request(scope, receive), b""
        if scope["method"] == "POST":
            front.gate.refuse_strangers(request)
            body = await front.gate.body(request, front.gate.most)
        kept = {name: scope[name] for name in SCOPE}
        streams = None  # whether the answer that has begun is a stream of events
        for again in (True, False):
            response = front.replicas.options(stream=True).answer.remote(kept, body, *await front.held())
            try:
                async for message in response:
                    if message["type"] == "http.response.start":
                        streams = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                    await send(message)
                return
            except LOST as error:
                log.warning("replica lost", extra={"facts": {"reason": type(error).__name__}})
                lost = Denied(503, "replica_lost", "the replica that was answering has died; ask again", seconds=1)
                if streams:
                    return await send({"type": "http.response.body", "body": line(failed(lost)[1]).encode()})
                if streams is False or not again:
                    raise lost from None
            finally:
                response.cancel()


def application(spec: Spec) -> Any:
    """The application for Ray Serve. Each replica takes a GPU, if the cluster has any, or else a CPU core."""
    limits, most = spec.settings.limits, max(spec.replicas, spec.most or 0)
    places = limits.waiting + SPARE
    scale = {"min_replicas": spec.replicas, "max_replicas": most, "target_ongoing_requests": limits.rows}
    replicas = serve.deployment(
        Replica,
        ray_actor_options={"num_gpus": 1, "num_cpus": 0} if "GPU" in ray.cluster_resources() else {"num_cpus": 1},
        max_ongoing_requests=places,
        graceful_shutdown_timeout_s=spec.stopping,
        max_constructor_retry_count=1,
        **({"num_replicas": most} if most == spec.replicas else {"autoscaling_config": scale}),
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=places * most,
        graceful_shutdown_timeout_s=spec.stopping,
    )
    return front.bind(replicas.bind(spec), spec.settings)


class Options(BaseModel):
    """What `serve run pave.serving:app` takes, as name=value or in a configuration file."""

    base: str = "playroom"
    patches: list[str] = Field(default_factory=list)  # or one text, with commas between them
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("patches", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return given.split(",") if isinstance(given, str) else given


def app(options: Options) -> Any:
    """The application for `serve run` and `serve deploy`. Keys are those of PAVE_API_KEY and PAVE_ADMIN_KEY."""
    settings = Settings(
        server_name(options.base), keys_of(os.environ.get("PAVE_API_KEY")), os.environ.get("PAVE_ADMIN_KEY")
    )
    patches = tuple(options.patches) or (SHOWN if options.base == "playroom" else ())
    return application(Spec(options.base, patches, settings, options.replicas, options.max_replicas))


def serve_on_ray(spec: Spec, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve until SIGTERM or Ctrl-C, on the cluster of the environment, or on this machine.

    port: 0 takes a free one. ready: called with the address."""
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if not port:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
    serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": KEEP_ALIVE})
    try:
        serve.run(application(spec), name=NAME)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise UsageError(f"the replicas do not start: {last}") from error
    told = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: told.set())
    ready(url_of(host, port))
    told.wait()
    serve.delete(NAME)
    ray.shutdown()
