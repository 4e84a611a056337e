"""`pave serve`: an OpenAI-compatible server of a base and its patches. Needs the extra `serve`.

A request's way: log.py (its id), gate.py (its key and body) -> api.py (routes) -> messages.py (what it asks) ->
media.py, remote.py (its files) -> engine.py (waits, is read and encoded, joins a batch) -> rows.py (its tokens) ->
replies.py, failures.py (what goes back). Apart from these: cluster.py and replica.py, the same on Ray Serve; vllm.py, a
front of a vLLM server.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """`pave.serving:app`, as Ray Serve asks for it."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pave.serving.cluster import app

    return app
