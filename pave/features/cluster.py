"""Work on Ray Data: on the cluster of the environment, or on this machine.

In: a function and what to call it with. Out: its results as they come. Knows nothing of what is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pave.errors import DataError

T = TypeVar("T")
BLOCKS = 4_096  # of rows: each costs the driver some memory


def on_ray(work: Callable[[T], str], given: Sequence[T], workers: int) -> Iterator[tuple[T, str]]:
    """Each thing with what became of it, a text, in any order."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError('--engine ray needs Ray; run pip install "pave[ray]"') from None
    if not given:
        return
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel("ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    share = min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
    rows = ray.data.from_items(
        [{"place": place} for place in range(len(given))], override_num_blocks=min(len(given), BLOCKS)
    )
    pool = ray.data.TaskPoolStrategy(size=workers)
    done = rows.map(
        lambda row: {"place": row["place"], "told": work(given[row["place"]])}, num_gpus=share or None, compute=pool
    )
    for row in done.iter_rows():
        yield given[row["place"]], row["told"]
