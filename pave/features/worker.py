"""The process that encodes clips for `pave encode`, and how it is asked; it may be killed at any time.

In: a `Job` and one clip. Out: its side tokens, or why there are none.
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
from pave.encoder import load_encoder
from pave.errors import DataError, EncoderError, MediaError, PaveError, SignalError
from pave.features import published
from pave.features.files import DTYPES, FeatureKey, identity
from pave.files.process import Pool, Reply, Stopped, Worker, answering, limit
from pave.media.clip import Clip
from pave.sidechannel import PARTS, SideTokens

START_SECONDS = 3600.0  # to open an encoder, whose weights may have to be fetched
# One thread: a worker for every core is what keeps them busy, and last bits do not hang on how many cores there are.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
WORKERS = Pool("pave.features.worker")


@dataclass(frozen=True)
class Job:
    """What to make of clips, and what it may cost."""

    encoder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"  # that tokens are kept in
    base: str = ""  # whose eyes an encoder gets that looks with those of a base
    published: str = ""  # folder of features that PAVE's authors published, to take instead of encoding
    timeout: float = 300.0  # seconds for one clip
    memory: float = 16.0  # GiB that a worker may hold, its network included


def ask(job: Job, key: FeatureKey, source: Source) -> Reply:
    """What a worker makes of a clip: an answer with `why` when it makes nothing. Should the process end, another one
    tries once more: somebody else may have killed it."""
    for tries in (1, 2):
        worker, own = borrow(job)
        if own != key:
            raise DataError(f"the weights have changed meanwhile: from {key} to {own}; begin again in another folder")
        try:
            said, arrays = worker.call({"path": str(source), "signals": source.signals}, job.timeout)
        except Stopped as stopped:
            if worker.late:
                return {"why": f"{source}: took longer than {job.timeout:g} s and was stopped"}, {}
            if tries == 2:
                return {"why": f"{source}: ends the process that encodes it ({stopped})"}, {}
        else:
            WORKERS.give_back(worker)
            return {"why": said["error"]} if "error" in said else said, arrays
    raise AssertionError("the second try returns")


def size_of(source: Source) -> int:
    return sum(file.stat().st_size for file in source.files if file.is_file())


def borrow(job: Job) -> tuple[Worker, FeatureKey]:
    """A worker that has the encoder of a job open, and the key of what it makes."""
    request = {"path": job.encoder, "job": asdict(job)}
    try:
        worker = WORKERS.lend(request, START_SECONDS, **ENVIRONMENT, **_device())
    except Stopped as stopped:
        cause = f"the process that should open it has ended ({stopped})"
        raise EncoderError(f"{job.encoder}: {cause}; does it fit into {job.memory:g} GiB?") from None
    if "error" in worker.answer:
        raise EncoderError(worker.answer["error"])
    return worker, FeatureKey(**worker.answer["key"])


def _device() -> dict[str, str]:
    """Under torchrun, each process of a machine has a GPU of its own."""
    if "LOCAL_RANK" not in os.environ:
        return {}
    local, visible = os.environ["LOCAL_RANK"], os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [local] if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": devices[int(local) % len(devices)]}


def serve() -> None:
    """The worker's side: the first request names the job, each further one a clip."""
    reader = None

    def answer(request: dict[str, Any]) -> Reply:
        nonlocal reader
        if "job" in request:
            reader = ClipEncoder(Job(**request["job"]))
            return {"key": reader.key.model_dump()}, {}
        assert reader
        signals = ((name, tuple(each) if isinstance(each, list) else each) for name, each in request["signals"])
        return reader.read(Source(Path(request["path"]), tuple(signals)))

    answering(answer)


class ClipEncoder:
    """An encoder, opened, and what it makes of files, in a process that may be killed any time."""

    def __init__(self, job: Job) -> None:
        limit("RLIMIT_DATA", int(job.memory * 2**30))
        self.job, self.frames = job, 1
        with self._room(job.encoder):
            self.encoder = load_encoder(job.encoder, **job.options)
            if job.base:
                from pave.loading.base import load_base  # brings transformers, which takes seconds

                base = load_base(job.base, dtype="float32")
                self.encoder, self.frames = self.encoder.on(base), base.frames
            self.key = FeatureKey.of(self.encoder, job.dtype, bool(job.published))

    def read(self, source: Source) -> Reply:
        """Tokens of a clip, or why there are none."""
        entry: dict[str, str] = {}
        try:
            with self._room(source):
                entry["media"], entry["signal"] = identity(source, self.encoder.spec.sense)
                clip = self._clip(source)
                tokens = self._tokens(source, clip)
                if tokens is None:
                    return {"entry": entry | {"absent": self.encoder.lacks(clip)}}, {}
                return {"entry": entry, "kind": tokens.kind}, self._rounded(source, tokens)
        except PaveError as error:
            return {"entry": entry, "why": str(error)}, {}

    def _clip(self, source: Source) -> Clip:
        """The clip as a base with as many key frames would have it, without what this encoder does not read."""
        hears = self.encoder.spec.sense == "audio"
        clip = Clip.read(source.video, frames=0 if hears else self.frames, audio=hears, timeout=None)
        return clip.beside(dict(source.signals))

    @torch.no_grad()
    def _tokens(self, source: Source, clip: Clip) -> SideTokens | None:
        if self.job.published:
            return published.tokens(self.encoder.spec, clip, Path(self.job.published), source.video)
        return self.encoder.encode(clip)

    def _rounded(self, source: Source, tokens: SideTokens) -> dict[str, np.ndarray]:
        """As arrays; those of `x` are bytes, since numpy knows no bfloat16."""
        x = tokens.x.to(DTYPES[self.job.dtype]).contiguous()
        if (x.isinf() & tokens.x.isfinite()).any():
            most = tokens.x[tokens.x.isfinite()].abs().max().item()
            raise SignalError(f"{source}: has tokens of {most:.3g}, too large for {self.job.dtype}; take bfloat16")
        return {"x": x.view(torch.uint8).numpy(), **{part: getattr(tokens, part).numpy() for part in PARTS[1:]}}

    @contextmanager
    def _room(self, what: object) -> Iterator[None]:
        """Say in words that memory did not suffice."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            lacking = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not lacking and not any(words in str(error) for words in ("allocate memory", "std::bad_alloc")):
                raise
            raise MediaError(f"{what}: needs more than the {self.job.memory:g} GiB that a worker may hold") from None
