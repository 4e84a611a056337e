"""The routes of the server: chat completions, explanations, models, patches, health, metrics, and the page.

    app = create_app(pave.load("playroom"), Settings(keys=frozenset({"secret"})))

In: requests over HTTP. Out: OpenAI's JSON. Each request is checked before its body is read: its key, its place in the
queue, its size. A client that goes away ends its generation. The log has a line of JSON for each request, without what
was asked and answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from pave.errors import PaveError, nearest
from pave.model.patched import PatchedModel
from pave.patch.report import PatchReport
from pave.serving.engine import Done, Engine, Event, Job
from pave.serving.explained import body as explanation
from pave.serving.explained import refuse_more
from pave.serving.failures import Denied, failed, line
from pave.serving.gate import GONE, Gate
from pave.serving.log import Logged, refused
from pave.serving.media import Intake
from pave.serving.messages import Asked, asked
from pave.serving.metrics import TYPE, Metrics
from pave.serving.page.routes import add_page
from pave.serving.remote import Remote
from pave.serving.replies import Reply
from pave.serving.settings import Settings, patches_of

T = TypeVar("T")


def create_app(model: PatchedModel, settings: Settings, named: bool = False) -> FastAPI:
    """The server as an ASGI application. It owns the model from now on. named: requests come with an id."""
    limits, metrics = settings.limits, Metrics()
    remote = Remote(settings.hosts, limits.clip_bytes, limits.fetch)
    engine = Engine(model, Intake(limits.clip_bytes, settings.folder, remote), limits, metrics)
    front = _Front(engine, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(title="PAVE", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine, app.state.front = engine, front
    app.add_middleware(Logged, metrics=metrics, named=named)
    app.add_exception_handler(PaveError, refused)
    app.add_exception_handler(HTTPException, refused)
    app.post("/v1/chat/completions", response_model=None)(front.complete)
    app.get("/v1/models", response_model=None)(front.models)
    app.get("/v1/models/{model:path}", response_model=None)(front.model)
    app.post("/v1/explain", response_model=None)(front.explain)
    app.post("/v1/load_patch", response_model=None)(front.load)
    app.post("/v1/unload_patch", response_model=None)(front.unload)
    for path, route in (("/health", front.health), ("/ready", front.ready)):  # balancers ask with HEAD
        app.api_route(path, methods=["GET", "HEAD"], response_model=None)(route)
    app.get("/metrics", response_model=None)(front.figures)
    add_page(app, engine, front.gate.refuse_strangers)
    return app


class _Front:
    """The routes of one server."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.engine, self.settings, self.metrics, self.gate = engine, settings, metrics, Gate(settings)
        self.since = int(time.time())

    # Answers

    async def complete(self, request: Request) -> Response:
        self.gate.refuse_strangers(request)
        with ExitStack() as stack:
            stack.enter_context(self.engine.place())
            stack.enter_context(self.gate.holding(request))
            answer = _Answer(self, request, *await self._asked(request))
            first = await answer.first()
            if answer.job.asked.stream:
                return _Stream(answer, first, stack.pop_all())
            return JSONResponse(answer.reply.whole(await answer.end(first)))

    async def explain(self, request: Request) -> Response:
        self.gate.refuse_strangers(request)
        with self.engine.place(), self.gate.holding(request):
            question, patches = await self._asked(request)
            refuse_more(question)
            found = await self.unless_gone(request, asyncio.wrap_future(self.engine.explain(question, patches)))
            return JSONResponse(explanation(question.model, patches, found))

    async def _asked(self, request: Request) -> tuple[Asked, tuple[str, ...]]:
        """What the body of a request asks, and of which patches."""
        body = await self.gate.json(request, self.gate.most)
        question = await asyncio.to_thread(asked, body, self.settings.limits.tokens)
        return question, self._patches(question.model)

    def _patches(self, model: str) -> tuple[str, ...]:
        known = self.engine.patches
        patches = patches_of(model, self.settings.name, known)
        if patches is None:
            ids = [self.settings.name, *(f"{self.settings.name}+{name}" for name in known)]
            raise Denied(404, "model_not_found", f"no model {model!r}; {nearest(model, ids)}")
        return patches

    # Models and patches

    async def models(self, request: Request) -> Response:
        self.gate.refuse_strangers(request)
        some = [
            self.described((), None),
            *(self.described((name,), each) for name, each in self.engine.patches.items()),
        ]
        return JSONResponse({"object": "list", "data": some})

    async def model(self, request: Request, model: str) -> Response:
        self.gate.refuse_strangers(request)
        patches = self._patches(model)
        report = self.engine.patches[patches[0]] if len(patches) == 1 else None
        return JSONResponse(self.described(patches, report))

    def described(self, patches: tuple[str, ...], report: PatchReport | None) -> dict[str, Any]:
        base = self.settings.name
        facts = {"id": "+".join((base, *patches)), "object": "model", "created": self.since, "owned_by": "pave"}
        facts |= {"root": base, "parent": base if patches else None, "max_model_len": self.engine.model.host.context}
        return facts if report is None else {**facts, "senses": dict(report.senses), "sha256": report.sha256}

    async def load(self, request: Request) -> Response:
        source, name = await self.gate.source(request)
        report = await asyncio.to_thread(self.engine.load, source, name)
        return JSONResponse(self.described((report.name,), report))

    async def unload(self, request: Request) -> Response:
        name = await self.gate.name(request)
        await asyncio.to_thread(self.engine.unload, name)
        return JSONResponse(self.deleted(name))

    def deleted(self, name: str) -> dict[str, Any]:
        return {"id": f"{self.settings.name}+{name}", "object": "model", "deleted": True}

    # State

    async def health(self) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(self) -> Response:
        full = self.engine.full
        return JSONResponse({"status": "busy" if full else "ready"}, 503 if full else 200)

    async def figures(self) -> Response:
        return Response(self.text(), media_type=TYPE)

    def text(self) -> bytes:
        """The metrics of now."""
        self.metrics.running.set(self.engine.running)
        self.metrics.waiting.set(self.engine.waiting)
        return self.metrics.text()

    # Every request

    async def unless_gone(self, request: Request, awaited: Awaitable[T]) -> T:
        """What is awaited, unless the client goes away, which cancels it."""
        wanted, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(self._gone(request))
        try:
            await asyncio.wait((wanted, gone), return_when=asyncio.FIRST_COMPLETED)
            if not wanted.done():
                raise Denied(499, "client_gone", GONE)
            return wanted.result()
        finally:
            wanted.cancel()
            gone.cancel()
            del wanted  # its error would hold this frame, which holds it

    async def _gone(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.metrics.cancelled.inc()


class _Answer:
    """One answer on its way to its client."""

    def __init__(self, front: _Front, request: Request, question: Asked, patches: tuple[str, ...]) -> None:
        self.front, self.request = front, request
        self.begin = time.monotonic()
        self.reply = Reply(question.model, front.engine.model.host.tokenizer)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.job: Job = front.engine.submit(
            question, patches, lambda event: loop.call_soon_threadsafe(self._events.put_nowait, event)
        )

    async def first(self) -> Event:
        """The first event, which decides the status; raised if it is an error."""
        event = await self._next()
        self.front.metrics.first.observe(time.monotonic() - self.begin)
        return event

    async def end(self, event: Event) -> Done:
        while not isinstance(event, Done):
            event = await self._next()
        self._count(event)
        return event

    async def lines(self, event: Event) -> AsyncIterator[str]:
        """The answer as a stream."""
        yield self.reply.first()
        try:
            while not isinstance(event, Done):
                yield self.reply.piece(str(event))
                event = await self._next()
            self._count(event)
            yield self.reply.last(event, self.job.asked.usage)
        except Exception as error:  # the status has gone out already
            yield line(failed(error)[1])
            if not isinstance(error, PaveError):
                raise

    async def _next(self) -> Event:
        """The next event, unless the client goes away, which ends the job."""
        try:
            found = await self.front.unless_gone(self.request, self._events.get())
            if isinstance(found, BaseException):
                raise found
            return found
        except BaseException:
            self.cancel()
            raise
        finally:
            found = None  # an error would hold this frame, which holds it

    def cancel(self) -> None:
        self.front.engine.cancel(self.job)

    def _count(self, done: Done) -> None:
        facts = {"model": self.reply.model, "prompt_tokens": done.prompt_tokens, "tokens": done.tokens}
        self.request.state.facts = {**facts, "finish": done.finish}
        self.front.metrics.seconds.observe(time.monotonic() - self.begin)
        self.front.metrics.tokens.inc(done.tokens)
        self.front.metrics.prompt_tokens.inc(done.prompt_tokens)
        self.front.metrics.cached_tokens.inc(done.cached_tokens)


class _Stream(StreamingResponse):
    """An answer in pieces, which holds its place until it has ended, however it ends."""

    def __init__(self, answer: _Answer, first: Event, place: ExitStack) -> None:
        super().__init__(answer.lines(first), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self.place = place
        place.callback(answer.cancel)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.place:
            await super().__call__(scope, receive, send)
