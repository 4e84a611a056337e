"""The requests that are answered and those that wait: read in their own pool, then generated in one running batch.

In: what requests ask. Out: events for each, told from other threads: pieces of text, then `Done` or an error. A request
may be cancelled at any moment. Knows nothing of HTTP.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pave.errors import PatchNotFound, nearest
from pave.explaining.explanation import Explanation
from pave.media.clip import limit_of
from pave.model.answer import Finish, Prepared
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.model.rows import prepared
from pave.patch.report import PatchReport
from pave.serving.batch import Batch, joined
from pave.serving.failures import Busy, Refused
from pave.serving.media import Intake
from pave.serving.messages import Asked
from pave.serving.metrics import Metrics
from pave.serving.prefixes import Prefixes
from pave.serving.reading import Reader
from pave.serving.rows import Chosen, Row
from pave.serving.settings import Limits


@dataclass(frozen=True)
class Done:
    """The end of an answer."""

    text: str  # all of it
    finish: Finish
    tokens: int
    prompt_tokens: int
    cached_tokens: int  # of the prompt, that were not computed anew
    patches: tuple[str, ...]
    signals: Mapping[str, str]  # as in `Answer`
    warnings: tuple[str, ...]
    chosen: tuple[Chosen, ...]  # probabilities of the tokens, if they were asked for


Event = str | Done | BaseException
Tell = Callable[[Event], Any]


@dataclass(eq=False)
class Job:
    """One request on its way."""

    asked: Asked
    patches: tuple[str, ...]
    tell: Tell
    cancelled: threading.Event = field(default_factory=threading.Event)
    clip: Hashable = None  # the key of its bytes
    features: ClipFeatures | None = None
    row: Row | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # of `Done`

    def dropped(self) -> None:
        """Hold the media no longer, which have been read, or will not be."""
        self.asked = replace(self.asked, media=())


class Engine:
    """Answers requests. One thread generates, `readers` threads read and encode, and one explains."""

    def __init__(self, model: PatchedModel, intake: Intake, limits: Limits, metrics: Metrics) -> None:
        self.model, self.limits, self.metrics = model, limits, metrics
        self.reader, self.prefixes = Reader(model, intake, limits), Prefixes(limits.prefixes)
        self._changed = threading.Condition()
        self._ready: deque[Job] = deque()  # encoded, not yet in the batch
        self._used: Counter[str] = Counter()  # patches of all requests
        self._leaving: set[str] = set()  # patches that are being removed
        self._held, self._closing, self._pace = 0, False, 1.0  # requests; whether no more come; seconds a request took
        self._live: list[Job] = []  # in the batch
        self._pool = ThreadPoolExecutor(limits.readers, thread_name_prefix="read")
        self._explaining = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._thread = threading.Thread(target=self._generate, name="generate", daemon=True)
        self._thread.start()

    # Requests

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests; Busy if all are taken."""
        with self._changed:
            if self._closing:
                raise Busy("this server is stopping", 5)
            if self._held >= self.limits.waiting:
                seconds = max(1, round(self._pace * self._held / self.limits.rows))
                raise Busy(f"{self._held} requests are being answered or wait", seconds)
            self._held += 1
        begin = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._held -= 1
                self._pace += 0.1 * (time.monotonic() - begin - self._pace)
                self._changed.notify_all()

    def submit(self, asked: Asked, patches: tuple[str, ...], tell: Tell) -> Job:
        """Begin to answer. `tell` gets the events, from other threads."""
        job = Job(asked, patches, tell)
        self._use(patches)
        self._pool.submit(self._read, job)
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more. What it holds is freed at once, although others may be read, or fill the
        batch, for minutes."""
        job.cancelled.set()
        job.dropped()
        with self._changed:
            waits = job in self._ready
            if waits:
                self._ready.remove(job)
        if waits:
            self._left(job)

    def explain(self, asked: Asked, patches: tuple[str, ...]) -> Future[Explanation]:
        """Find out why the answer is what it is; one at a time, and beside the batch, whose rows it does not join."""
        self._use(patches)

        def explained() -> Explanation:
            return self.reader.explained(asked.media, patches, asked.question, asked.sampling.most)

        future = self._explaining.submit(explained)
        future.add_done_callback(lambda _: self._leave(patches))
        return future

    def _use(self, patches: tuple[str, ...]) -> None:
        """Keep patches from being unloaded."""
        with self._changed:
            for name in patches:
                if name in self._leaving:
                    raise PatchNotFound(name, "is being unloaded", nearest(name, self.patches))
            self._used.update(patches)

    def _leave(self, patches: tuple[str, ...]) -> None:
        with self._changed:
            self._used.subtract(patches)
            self._changed.notify_all()

    def _read(self, job: Job) -> None:
        try:
            if job.cancelled.is_set():
                return self._end(job, InterruptedError())
            begin = time.perf_counter()
            job.clip, job.features = self.reader.features(job.asked.media, job.patches, job.asked.question)
            self.metrics.read.observe(time.perf_counter() - begin)
        except Exception as error:
            return self._end(job, error)
        finally:
            job.dropped()
        with self._changed:
            if not self._left(job):
                self._ready.append(job)
                self._changed.notify_all()

    def _end(self, job: Job, event: Event) -> None:
        self._leave(job.patches)
        job.tell(event)

    # Patches

    @property
    def patches(self) -> Mapping[str, PatchReport]:
        """The patches that requests may name."""
        with self._changed:
            return {name: report for name, report in self.model.patches.items() if name not in self._leaving}

    def load(self, source: str, name: str | None) -> PatchReport:
        """Apply a patch."""
        return self.model.apply_patch(source, name=name)

    def unload(self, name: str) -> None:
        """Remove a patch, after the requests that use it; no others are taken meanwhile."""
        with self._changed:
            if name not in self.patches:
                raise PatchNotFound(name, "no patch of this name is loaded", nearest(name, self.patches))
            self._leaving.add(name)
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._used[name])
            self.model.remove_patch(name)  # without the lock: it waits for the running batch, which needs the lock
        finally:
            with self._changed:
                self._leaving.discard(name)

    # Generation

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self.model.host.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def waiting(self) -> int:
        """Requests that are not in the batch yet."""
        return max(0, self._held - len(self._live))

    @property
    def running(self) -> int:
        return len(self._live)

    @property
    def full(self) -> bool:
        return self._held >= self.limits.waiting

    def close(self) -> None:
        """Take no more requests, finish those that are here, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._pool.shutdown()
        self._explaining.shutdown()
        self._thread.join()

    def _generate(self) -> None:
        batch: Batch | None = None
        while True:
            with self._changed:
                if batch is None:
                    self._changed.wait_for(lambda: self._ready or (self._closing and not self._held))
                    if not self._ready:
                        return
                free = self.limits.rows - len(self._live)
                fresh = [self._ready.popleft() for _ in range(min(len(self._ready), free))]
            batch = self._step(batch, fresh)
            self._settled()  # a client may leave at any moment, also between the last token and the end of a batch

    def _step(self, batch: Batch | None, fresh: Sequence[Job]) -> Batch | None:
        """Run the batch with what has come, until more can join."""
        try:
            parts = [] if batch is None else [batch]
            groups = self._prepared([job for job in fresh if not self._left(job)])
            self._live += [job for jobs, _ in groups for job in jobs]
            parts += [part for jobs, ready in groups for part in self._begun(jobs, ready)]
            parts = [part for part in parts if not part.over]
            if len(parts) > 1 and not all(part.joinable for part in parts):
                for part in parts:  # one after the other
                    part.run(self._settled)
                return None
            if not parts:
                return None
            batch = parts[0]
            if batch.joinable and (len(parts) > 1 or any(row.over for row in batch.rows)):
                batch = joined(parts)
            self.metrics.rows.observe(len(batch.rows))
            batch.run(self._pausing(batch))
            return None if batch.over else batch
        except Exception as error:
            live, self._live = self._live, []
            for job in live:
                self._end(job, error)
            return None

    def _pausing(self, batch: Batch) -> Callable[[], bool]:
        """Whether it is worth to pause: others can join, or half of the rows are over."""
        if not batch.joinable:
            return self._settled
        rows, most = len(batch.rows), self.limits.rows

        def pause() -> bool:
            self._settled()
            left = sum(not row.over for row in batch.rows)
            return bool(left) and ((bool(self._ready) and left < most) or (rows > 1 and left <= rows // 2))

        return pause

    def _begun(self, jobs: Sequence[Job], ready: Prepared) -> list[Batch]:
        """Jobs after their first token."""
        rows = [Row(job.asked.sampling, job.cancelled, self.text_of, job.tell) for job in jobs]
        for job, row in zip(jobs, rows, strict=True):
            job.row = row
        clips = [job.clip for job in jobs]
        return self.prefixes.begun(self.model.calls, rows, clips, ready, lambda: not self._settled())

    def _prepared(self, jobs: Sequence[Job]) -> list[tuple[Sequence[Job], Prepared]]:
        """Jobs as batches: one, unless some of them cannot be asked, or not together."""
        if not jobs:
            return []
        rows = [
            {"clip": job.features, "question": job.asked.question, "patches": job.patches, "history": job.asked.history}
            for job in jobs
        ]
        try:
            ready = prepared(self.model.calls, rows, limit_of("auto"), {})
            self._fits(jobs, ready)
        except Exception as error:
            if len(jobs) == 1:
                self._end(jobs[0], error)
                return []
            half = len(jobs) // 2
            return self._prepared(jobs[:half]) + self._prepared(jobs[half:])
        return [(jobs, ready)]

    def _fits(self, jobs: Sequence[Job], ready: Prepared) -> None:
        """Note what is known of the prompts; `Refused` for one that leaves no room for its answer."""
        lengths, context = ready.inputs.attention_mask.sum(-1).tolist(), self.model.host.context
        for i, (job, length) in enumerate(zip(jobs, lengths, strict=True)):
            most = job.asked.sampling.most
            if context and length + most > context:
                cause = f"the prompt has {length:,} tokens and the answer up to {most:,}"
                raise Refused("max_tokens", f"{cause}, this base supports {context:,}; ask for less, or begin anew")
            job.facts = {
                "prompt_tokens": length,
                "patches": tuple(use.name for use in ready.inputs.uses if use.rows[i]),
                "signals": dict(ready.signals[i]),
                "warnings": tuple(ready.warnings[i]),
            }

    def _left(self, job: Job) -> bool:
        """Whether nobody waits for a job any more, which ends it."""
        left = job.cancelled.is_set()
        if left:
            self._end(job, InterruptedError())
        return left

    def _settled(self) -> bool:
        """Tell of the rows that are over, after every token. False: nobody asks for a pause here."""
        over = [job for job in self._live if job.row is not None and job.row.over]
        self._live = [job for job in self._live if job not in over]
        for job in over:
            self._end(job, self._done(job))
        return False

    def _done(self, job: Job) -> Event:
        row = job.row
        if row is None or row.finish is None:
            return InterruptedError()
        chosen = tuple(row.chosen[: len(row.ids)])
        return Done(row.text, row.finish, len(row.ids), cached_tokens=row.cached, chosen=chosen, **job.facts)
