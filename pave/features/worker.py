"""The worker process that encodes clips for `pave encode`, and its client. It may be killed at any time.

In: a `Job` and one clip. Out: its side tokens, or why it has none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pave.data import Source
from pave.encoder import load_encoder, mixed
from pave.errors import DataError, EncoderError, MediaError, PaveError, SignalError
from pave.features import published
from pave.features.files import DTYPES, FeatureKey, identity
from pave.files.process import Pool, Reply, Stopped, Worker, answering, limit
from pave.media.clip import Clip
from pave.sidechannel import PARTS, SideTokens

START_SECONDS = 3600.0  # to load an encoder, whose weights may have to be downloaded
# One thread: one worker per core keeps all cores busy, and bits do not depend on the number of cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
WORKERS = Pool("pave.features.worker")
# Without a limit given, seconds to read a clip and to encode it; more for each megabyte, and for each second of it.
LEAST, PER_MEGABYTE, PER_SECOND = 300.0, 1.0, 10.0


@dataclass(frozen=True)
class Job:
    """How to encode clips, within which limits."""

    encoder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"  # of the stored tokens
    base: str = ""  # model whose vision tower the encoder uses, if it needs one
    published: str = ""  # folder of published features, to convert instead of encoding
    timeout: float | None = None  # seconds for one clip; None: more for a longer one
    memory: float = 16.0  # GiB of a worker, its network included


def ask(job: Job, key: FeatureKey, source: Source) -> Reply:
    """A worker's reply about a clip; it has `why` if the clip cannot be encoded. If the process dies, another one
    tries once more: it may have been killed from outside."""
    for tries in (1, 2):
        worker, own = borrow(job)
        if own != key:
            raise DataError(f"the weights changed during the run, from {key} to {own}; start again in another folder")
        try:
            request = {"path": str(source), "signals": source.signals, "tracks": source.tracks}
            facts, arrays = worker.call(request, job.timeout or LEAST + PER_MEGABYTE * size_of(source) / 1e6)
        except Stopped as stopped:
            if worker.late:
                took = f"longer than {job.timeout:g} s" if job.timeout else "much longer than its length explains"
                return {"why": f"{source}: took {took} and was stopped; raise --timeout"}, {}
            if tries == 2:
                return {"why": f"{source}: crashes the process that encodes it ({stopped})"}, {}
        else:
            WORKERS.give_back(worker)
            return {"why": facts["error"]} if "error" in facts else facts, arrays
    raise AssertionError("the second try returns")


def size_of(source: Source) -> int:
    """Bytes of all files of a clip that exist."""
    return sum(file.stat().st_size for file in source.files if os.path.isfile(file))


def borrow(job: Job) -> tuple[Worker, FeatureKey]:
    """A worker with the encoder of a job loaded, and the key of its features."""
    request = {"path": job.encoder, "job": asdict(job)}
    try:
        worker = WORKERS.lend(request, START_SECONDS, **ENVIRONMENT, **_device())
    except Stopped as stopped:
        cause = f"the process that loads it has died ({stopped})"
        raise EncoderError(f"{job.encoder}: {cause}; does it fit into {job.memory:g} GiB? raise --memory") from None
    if "error" in worker.answer:
        raise EncoderError(worker.answer["error"])
    return worker, FeatureKey(**worker.answer["key"])


def _device() -> dict[str, str]:
    """Under torchrun, each process of a machine gets its own GPU."""
    if "LOCAL_RANK" not in os.environ:
        return {}
    local, visible = os.environ["LOCAL_RANK"], os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [local] if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": devices[int(local) % len(devices)]}


def serve() -> None:
    """The worker's side: the first request is the job, each further one a clip."""
    clip_encoder = None

    def answer(request: dict[str, Any]) -> Iterator[Reply]:
        nonlocal clip_encoder
        if "job" in request:
            clip_encoder = ClipEncoder(Job(**request["job"]))
            yield {"key": clip_encoder.key.model_dump()}, {}
            return
        assert clip_encoder
        signals = ((name, tuple(each) if isinstance(each, list) else each) for name, each in request["signals"])
        yield from clip_encoder.encode(Source(Path(request["path"]), tuple(signals), **request["tracks"]))

    answering(answer)


class ClipEncoder:
    """Encodes files with one encoder, in a process that may be killed at any time."""

    def __init__(self, job: Job) -> None:
        limit("RLIMIT_DATA", int(job.memory * 2**30))
        self.job, self.frames = job, 1
        with self._memory_errors(job.encoder):
            self.encoder = load_encoder(job.encoder, **job.options)
            if job.base:
                from pave.loading.base import load_base  # imports transformers, which takes seconds

                base = load_base(job.base, dtype="float32")
                self.encoder, self.frames = self.encoder.on(base), base.frames
            self.key = FeatureKey.of(self.encoder, job.dtype, bool(job.published))

    def encode(self, source: Source) -> Iterator[Reply]:
        """Tokens of a clip, or why it has none; before, once its length is known, the seconds for encoding it."""
        entry: dict[str, Any] = {}
        try:
            with self._memory_errors(source):
                entry["media"], entry["signal"] = identity(source, self.encoder.spec.sense)
                clip = self._clip(source)
                entry |= {"warnings": clip.report.warnings} if clip.report.warnings else {}
                if self.job.timeout is None:
                    yield {"within": LEAST + PER_SECOND * clip.report.seconds}, {}
                yield self._reply(source, clip, entry)
        except PaveError as error:
            yield {"entry": entry, "why": str(error)}, {}

    def _reply(self, source: Source, clip: Clip, entry: dict[str, Any]) -> Reply:
        tokens = self._tokens(source, clip)
        if tokens is None:
            return {"entry": entry | {"absent": self.encoder.lacks(clip)}}, {}
        return {"entry": entry, "kind": tokens.kind}, self._arrays(source, tokens)

    def _clip(self, source: Source) -> Clip:
        """The clip as a base with as many key frames reads it; only the streams that this encoder needs."""
        hears, mono = self.encoder.hears, mixed([self.encoder])
        frames = 0 if self.encoder.spec.sense == "audio" else self.frames
        clip = Clip.read(source.video, frames=frames, mono=mono, **source.options(hears), timeout=None)
        return clip.beside(source.beside(hears), timeout=None).opened([self.encoder.spec.sense])

    @torch.no_grad()
    def _tokens(self, source: Source, clip: Clip) -> SideTokens | None:
        if self.job.published:
            return published.tokens(self.encoder.spec, clip, Path(self.job.published), source.video)
        return self.encoder.encode(clip)

    def _arrays(self, source: Source, tokens: SideTokens) -> dict[str, np.ndarray]:
        """Tokens as arrays; `x` as bytes, since numpy has no bfloat16."""
        x = tokens.x.to(DTYPES[self.job.dtype]).contiguous()
        if (x.isinf() & tokens.x.isfinite()).any():
            most = tokens.x[tokens.x.isfinite()].abs().max().item()
            raise SignalError(f"{source}: has tokens of {most:.3g}, too large for {self.job.dtype}; use bfloat16")
        return {"x": x.view(torch.uint8).numpy(), **{part: getattr(tokens, part).numpy() for part in PARTS[1:]}}

    @contextmanager
    def _memory_errors(self, what: object) -> Iterator[None]:
        """Turn any out-of-memory error into a MediaError."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not exhausted and not any(text in str(error) for text in ("allocate memory", "std::bad_alloc")):
                raise
            raise MediaError(f"{what}: needs more than {self.job.memory:g} GiB of memory; raise --memory") from None
