"""Many things done at a time in threads, each of which mostly waits.

In: a function and what to call it with. Out: results as they come. Knows nothing of what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def done(
    work: Callable[[T], R], given: Iterable[T], at_once: int, name: str, stop: Callable[[], object] = lambda: None
) -> Iterator[tuple[T, R]]:
    """Each thing with its result, in the order in which they are ready. The first error ends all, as Ctrl-C does: what
    has not begun is not done, and what has is waited for. stop: called then, so that it ends early. name: of the
    threads."""
    with ThreadPoolExecutor(at_once, thread_name_prefix=name) as pool:
        waiting = {pool.submit(work, each): each for each in given}
        try:
            for ready in as_completed(waiting):
                yield waiting[ready], ready.result()
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
