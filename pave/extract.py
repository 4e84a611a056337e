"""Side tokens of many clips, by processes that may be killed: what `pave encode` does.

In: clips, and a `Job`: which encoder makes what of them, within which limits. Out: a folder of feature files, one for
each shard, which is a fixed part of the list of clips; and `quarantine.jsonl`, which names the clips that could not be
read. `extract` is the whole work of one shard and a pure function: the same bytes whoever calls it, and however often.
So threads of this process may call it, or Ray, or each rank of torchrun for its share; what was killed is begun again,
and what is there stays. Each caller has a worker process (pave/worker.py), replaced when a clip takes it down.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pave import published, storage
from pave.data import Source, read_jsonl
from pave.encoder import consent, load_encoder
from pave.errors import DataError, EncoderError, MediaError, PatchError, PaveError, SignalError
from pave.feature_files import DTYPES, Entry, Key, files, head, identity, write
from pave.media import Clip
from pave.sidechannel import PARTS, SideTokens
from pave.worker import Answer, Stopped, Worker, answering, limit

START_SECONDS = 3600.0  # to open an encoder, whose weights may have to be fetched
VIDEO = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
SOUND = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus")
# One thread: a worker for every core is what keeps them busy, and last bits do not hang on how many cores there are.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
Engine = Literal["local", "ray"]


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


@dataclass(frozen=True)
class Shard:
    """The clips of one feature file, each with the name that it was given by."""

    path: Path
    clips: tuple[tuple[str, Source], ...]


@dataclass(frozen=True)
class Tally:
    """What lies in a folder of feature files."""

    clips: int
    absent: int  # clips that lack the stream
    refused: Mapping[str, str]  # clips that could not be read, and why
    shards: int
    bytes: int


def listed(source: Path) -> list[tuple[str, Source]]:
    """The clips of a JSONL file, each once, or all media files in a folder; with their names as seen from there."""
    source = source.absolute()  # whoever reads them may be somewhere else
    if source.is_dir():
        found = [Source(file) for file in sorted(source.rglob("*")) if _is_media(file)]
        if not found:
            raise DataError(
                f"{source}: holds no media file ({' '.join(VIDEO + SOUND)}); give another folder, or a JSONL file"
            )
        return [(clip.video.relative_to(source).as_posix(), clip) for clip in found]
    clips = dict.fromkeys(example.source for example in read_jsonl(source))
    return [(os.path.relpath(clip.video, source.parent), clip) for clip in clips]


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO + SOUND and path.is_file()


def encode(
    job: Job,
    clips: Sequence[tuple[str, Source]],
    out: Path,
    *,
    size: int = 32,
    workers: int = 1,
    engine: Engine = "local",
    retry: bool = False,
    progress: Callable[[int], object] = lambda clips: None,
) -> Tally:
    """Encode clips into `out`, `size` of them a file; what is there already stays. `retry`: files that name refused
    clips are made again. `progress` gets numbers of clips as their file is there. Under torchrun, each rank does its
    share, and the tally is of what all ranks have done so far."""
    out.mkdir(parents=True, exist_ok=True)
    shards = plan(clips, out.resolve(), size)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        worker, key = borrow(job)
        _idle.append((job, key, worker))
        if not key.commercial:
            consent(key.encoder, key.licence)
        there = _there(shards, key)
        own = shards[rank::ranks]
        left = [shard for shard in own if not _done(shard, there.get(shard.path, []), retry)]
        progress(sum(len(shard.clips) for shard in own) - sum(len(shard.clips) for shard in left))
        sizes = {shard.path: len(shard.clips) for shard in left}
        for path in (_here if engine == "local" else _on_ray)(partial(extract, job, key), left, workers):
            progress(sizes[path])
        return _tally(out, shards, _there(shards, key))
    finally:
        _idle.clear()


def plan(clips: Sequence[tuple[str, Source]], out: Path, size: int) -> list[Shard]:
    """Shards of a list of clips; the same list gives the same ones."""
    parts = [tuple(clips[first : first + size]) for first in range(0, len(clips), size)]
    return [Shard(out / f"{number:05d}.safetensors", part) for number, part in enumerate(parts)]


def _there(shards: Sequence[Shard], key: Key) -> dict[Path, Sequence[Entry]]:
    """The feature files of these shards that there are. DataError: the folder holds others, which nobody overwrites."""
    names = {shard.path: [name for name, _ in shard.clips] for shard in shards}
    found = {}
    for path in files(shards[0].path.parent):
        held = head(path)
        if held.key != key:
            raise DataError(f"{path}: holds {held.key}, and asked for is {key}; give another folder")
        if [entry.path for entry in held.clips] != names.get(path):
            raise DataError(f"{path}: holds {len(held.clips)} other clips than asked for; give another folder")
        found[path] = held.clips
    return found


def _done(shard: Shard, entries: Sequence[Entry], retry: bool) -> bool:
    """Whether nothing is left to do for a shard: it is there, and the files of its clips are as long as they were."""
    sizes = [_size(clip) for _, clip in shard.clips]
    return [entry.size for entry in entries] == sizes and not (retry and any(entry.why for entry in entries))


def _tally(out: Path, shards: Sequence[Shard], there: Mapping[Path, Sequence[Entry]]) -> Tally:
    """Count; once all is there, write down what was refused. Whoever comes last sees all, so no rank need wait."""
    entries = [entry for path in sorted(there) for entry in there[path]]
    refused = {entry.path: entry.why for entry in entries if entry.why}
    if len(there) == len(shards):
        lines = [json.dumps({"file": name, "why": why}) for name, why in refused.items()]
        try:
            with storage.replacing(out / "quarantine.jsonl") as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
        except PatchError as error:
            raise DataError(f"{error.file}: {error.cause}; make room") from None
    absent = sum(bool(entry.absent) for entry in entries)
    return Tally(len(entries), absent, refused, len(there), sum(path.stat().st_size for path in there))


def _here(work: Callable[[Shard], Path], shards: Sequence[Shard], workers: int) -> Iterator[Path]:
    with ThreadPool(workers) as pool:
        yield from pool.imap_unordered(work, shards)


def _on_ray(work: Callable[[Shard], Path], shards: Sequence[Shard], workers: int) -> Iterator[Path]:
    """The same on Ray Data, on the cluster that the environment names, or on this machine alone."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError('--engine ray needs Ray; pip install "pave[ray]"') from None
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel("ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    share = min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
    rows = ray.data.from_items([{"place": place} for place in range(len(shards))], override_num_blocks=len(shards))
    pool = ray.data.TaskPoolStrategy(size=workers)
    done = rows.map(lambda row: {"path": str(work(shards[row["place"]]))}, num_gpus=share or None, compute=pool)
    for row in done.iter_rows():
        yield Path(row["path"])


# ---------------------------------------------------------------- one shard


def extract(job: Job, key: Key, shard: Shard) -> Path:
    """Encode the clips of a shard and write its file: the unit of all work."""
    entries, tokens = [], {}
    for place, (name, source) in enumerate(shard.clips):
        said, arrays = _ask(job, key, source)
        why = said.pop("why", "").replace(str(source), name)
        entries.append(Entry(path=name, size=_size(source), why=why, **said.get("entry", {})))
        if arrays:
            x, *others = (torch.from_numpy(arrays[part]) for part in PARTS)
            tokens[place] = SideTokens(x.view(DTYPES[job.dtype]), *others, kind=said["kind"])
    write(shard.path, key, entries, tokens)
    return shard.path


def _ask(job: Job, key: Key, source: Source) -> Answer:
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
            _idle.append((job, key, worker))
            return {"why": said["error"]} if "error" in said else said, arrays
    raise AssertionError("the second try returns")


def _size(source: Source) -> int:
    return sum(file.stat().st_size for file in source.files if file.is_file())


# ---------------------------------------------------------------- workers

_idle: deque[tuple[Job, Key, Worker]] = deque()


def borrow(job: Job) -> tuple[Worker, Key]:
    """A worker that has the encoder of a job open, and the key of what it makes."""
    while _idle:
        try:
            other, key, worker = _idle.pop()
        except IndexError:  # another thread was faster
            break
        if other == job and worker.owner == os.getpid() and worker.process.poll() is None:
            return worker, key
    worker = Worker("pave.extract", **ENVIRONMENT, **_device())
    try:
        said, _ = worker.call({"path": job.encoder, "job": asdict(job)}, START_SECONDS)
    except Stopped as stopped:
        cause = f"the process that should open it has ended ({stopped})"
        raise EncoderError(f"{job.encoder}: {cause}; does it fit into {job.memory:g} GiB?") from None
    if "error" in said:
        raise EncoderError(said["error"])
    return worker, Key(**said["key"])


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

    def answer(request: dict[str, Any]) -> Answer:
        nonlocal reader
        if "job" in request:
            reader = Reader(Job(**request["job"]))
            return {"key": reader.key.model_dump()}, {}
        assert reader
        signals = ((name, tuple(each) if isinstance(each, list) else each) for name, each in request["signals"])
        return reader.read(Source(Path(request["path"]), tuple(signals)))

    answering(answer)


class Reader:
    """An encoder, opened, and what it makes of files, in a process that may be killed any time."""

    def __init__(self, job: Job) -> None:
        limit("RLIMIT_DATA", int(job.memory * 2**30))
        self.job, self.frames = job, 1
        with self._room(job.encoder):
            self.encoder = load_encoder(job.encoder, **job.options)
            if job.base:
                from pave.opening import load_base  # brings transformers, which takes seconds

                base = load_base(job.base, dtype="float32")
                self.encoder, self.frames = self.encoder.on(base), base.frames
            self.key = Key.of(self.encoder, job.dtype, bool(job.published))

    def read(self, source: Source) -> Answer:
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
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise MediaError(f"{what}: needs more than the {self.job.memory:g} GiB that a worker may hold") from None
