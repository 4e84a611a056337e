"""One replica of a server on Ray Serve: a process with the base, all patches and the server of api.py.

In: requests that the front of cluster.py passes on, with the patches that all replicas have. Out: the messages of their
answers (ASGI). Knows nothing of the other replicas.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import serve  # pyright: ignore[reportMissingImports]
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Scope

from pave.errors import PatchMismatch, PaveError
from pave.serving.failures import Denied, failed
from pave.serving.log import log_lines, refused
from pave.serving.settings import Settings

Held = Mapping[str, tuple[str, str]]  # name of a patch -> its source and sha256
Told = tuple[int, dict[str, Any]]  # status and body


@dataclass(frozen=True)
class Spec:
    """What the replicas serve, and how many there are."""

    base: str
    patches: tuple[str, ...]
    settings: Settings
    replicas: int = 1
    most: int | None = None  # replicas under load; None: no more than `replicas`
    gpus: int | None = None  # of each replica; None: one where the cluster has any
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
        from pave.model.patched import load  # the processes that only name this class need no torch
        from pave.serving.api import create_app

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

    async def _told(self, version: int, held: Held, change: Callable[[], dict[str, Any]]) -> Told:
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
