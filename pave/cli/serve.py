"""The `pave serve` command: a base and its patches behind an OpenAI-compatible API and a page, until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pave.cli.ask import Device, Dtype, Frames, Patches
from pave.cli.terminal import lines_of, quiet, remark, say
from pave.errors import UsageError

LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(
    base: Annotated[str, typer.Argument(metavar="BASE", help="'playroom', a folder, or a Hub id.")] = "playroom",
    patch: Patches = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: on all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0: a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--served-model-name", metavar="NAME", help="Of the base. Default: its own.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="Clients must send one; may be repeated. Better: PAVE_API_KEY, with commas between them.",
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="PAVE_ADMIN_KEY", help="Allows to load and unload patches with this key."),
    ] = None,
    allow_media_from: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Fetch media from this host; may be repeated. '*': every public one."),
    ] = None,
    media_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="Read file: URIs of clients, of files in this folder only.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that are generated together.")] = 16,
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at once; others are refused: 429.")] = 64,
    readers: Annotated[int, typer.Option(metavar="N", min=1, help="Clips that are read and encoded at once.")] = 2,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of an answer, at most.")] = 1024,
    max_clip_mb: Annotated[int, typer.Option(metavar="MB", min=1, help="Megabytes of a media file, at most.")] = 64,
    max_clip_seconds: Annotated[float, typer.Option(metavar="S", min=0.1, help="Length of a clip, at most.")] = 600.0,
    prefix_mb: Annotated[
        int, typer.Option(metavar="MB", min=0, help="Keys and values kept for further questions, at most; 0: none.")
    ] = 2048,
    stopping: Annotated[
        float, typer.Option(metavar="S", min=0, help="Seconds for running answers when it is stopped.")
    ] = 60.0,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(metavar="ENGINE", help="'local', or 'ray' for replicas on a cluster.")
    ] = "local",
    replicas: Annotated[int | None, typer.Option(metavar="N", min=1, help="On Ray. Default: 1.")] = None,
    max_replicas: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="On Ray, under load. Default: --replicas.")
    ] = None,
    frames: Frames = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Serve BASE and its patches: an OpenAI-compatible API, and a page to try them.

    Patches are models, as BASE+PATCH or BASE+PATCH+PATCH. Without --patch, the embedded base is served with
    audio-playroom and fast-playroom. Stops with Ctrl-C or SIGTERM, after the running answers.
    """
    quiet()
    if engine == "local" and (replicas or max_replicas):
        raise UsageError("--replicas and --max-replicas need --engine ray")
    if max_replicas and max_replicas < (replicas or 1):
        raise UsageError(f"--max-replicas {max_replicas} is less than --replicas {replicas}; raise it, or leave it out")
    import os

    from pave.serving.remote import hosts_of
    from pave.serving.settings import SHOWN, Limits, Settings, keys_of, server_name

    limits = Limits(
        rows=batch,
        waiting=queue,
        readers=readers,
        tokens=max_tokens,
        clip_bytes=max_clip_mb << 20,
        clip_seconds=max_clip_seconds,
        prefixes=prefix_mb << 20,
    )
    settings = Settings(
        name or server_name(base),
        keys_of(os.environ.get("PAVE_API_KEY")) | {*(api_key or [])},
        admin_key,
        hosts_of(allow_media_from or []),
        media_folder,
        limits,
    )
    patches = tuple(patch or (SHOWN if base == "playroom" else ()))
    if host not in LOCAL and not settings.keys:
        remark(f"warning: whoever reaches {host} may ask; set PAVE_API_KEY to ask for a key")

    def ready(url: str) -> None:
        say(f"serving {settings.name} at {url}/v1", f"a page to try it: {url}")

    if engine == "ray":
        try:
            from pave.serving.cluster import Spec, serve_on_ray
        except ModuleNotFoundError as error:
            raise _needs(error, "serve,serve-ray") from None
        spec = Spec(base, patches, settings, replicas or 1, max_replicas, None, dtype, device, frames, stopping)
        return serve_on_ray(spec, host, port, ready)
    try:
        from pave.serving.api import create_app
        from pave.serving.run import serve as run
    except ModuleNotFoundError as error:
        raise _needs(error, "serve") from None
    from pave.model.patched import load

    model = load(base, dtype=dtype, device=device, frames=frames)
    for source in patches:
        remark(*lines_of(model.apply_patch(source)))
    run(create_app(model, settings), host, port, stopping, ready)


def _needs(error: ModuleNotFoundError, extras: str) -> UsageError:
    return UsageError(f"pave serve needs {error.name}: pip install 'pave[{extras}]'")
