"""The routes of the page: its files, clips to try, and the cards of patches.

In: requests. Out: files with headers that let the page run its own scripts and speak to its own server, and nothing
else; JSON and films behind the key of the server, if it has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from pave.errors import PatchNotFound, nearest
from pave.serving.engine import Engine
from pave.serving.failures import Denied
from pave.serving.page.cards import card_of
from pave.serving.page.examples import film, listed

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks again after an upgrade
}


def add_page(app: FastAPI, engine: Engine, refuse_strangers: Callable[[Request], None]) -> None:
    """The page at `/`, its parts at `/page/NAME`, and what it asks for beside the API of OpenAI."""
    parts = {file.name: file.read_bytes() for file in Path(__file__).parent.iterdir() if file.suffix in TYPES}
    plays = engine.model.host.repo == "playroom"  # no other base knows the world of the examples

    async def part(name: str = "index.html") -> Response:
        if name not in parts:
            raise Denied(404, "not_found", f"the page has no part {name!r}; open /")
        return Response(parts[name], 200, HEADERS, TYPES[Path(name).suffix])

    async def examples(request: Request) -> Response:
        refuse_strangers(request)
        return JSONResponse({"object": "list", "data": await asyncio.to_thread(listed) if plays else []})

    async def example(request: Request, id: str) -> Response:
        refuse_strangers(request)
        clip = await asyncio.to_thread(film, id) if plays else None
        if clip is None:
            raise Denied(404, "not_found", f"no example {id!r}; GET /v1/examples lists them")
        return Response(clip, media_type="video/mp4")

    async def card(request: Request, name: str) -> Response:
        refuse_strangers(request)
        report = engine.patches.get(name)
        if report is None:
            raise PatchNotFound(name, "no patch of this name is loaded", nearest(name, engine.patches))
        return JSONResponse({"patch": name, **await asyncio.to_thread(card_of, report)})

    for path, route in (
        ("/", part),
        ("/page/{name}", part),
        ("/v1/examples", examples),
        ("/v1/examples/{id}", example),
        ("/v1/cards/{name}", card),
    ):
        app.get(path, response_model=None)(route)
