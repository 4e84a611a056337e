"""Side tokens of many clips, from processes that may be killed: the work of `pave encode`.

In: clips, and a `Job`: the encoder, its options and limits. Out: a folder of feature files, one per shard, which is a
fixed part of the list of clips; and lists: `quarantine.jsonl` of the clips that could not be read, `warnings.jsonl` of
what was wrong with others. `extract` does all the work of one shard and is a pure function: it always writes the same
bytes. So it can run in threads, on Ray, or on the ranks of torchrun; interrupted shards are restarted, finished ones
stay. Each caller has a worker process (pave/files/process.py), which is replaced if a clip crashes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Literal

import torch

from pave.data import Source
from pave.data_sets import DataSet
from pave.encoder import consent
from pave.errors import DataError, raised_as
from pave.features.cluster import on_ray
from pave.features.files import DTYPES, ClipEntry, FeatureKey, files, read_header, write, write_list
from pave.features.worker import WORKERS, Job, ask, borrow, size_of
from pave.files.locks import held
from pave.media.headers import announced_by
from pave.media.warned import FEW
from pave.readers.questions import read_data
from pave.readers.tables import is_saved
from pave.sidechannel import PARTS, SideTokens

# Endings that promise media: such a file is a clip even if it cannot be opened, so that it keeps its place in its
# shard. Of any other file, PyAV decides whether it is one.
VIDEO = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv")
SOUND = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus")
Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Shard:
    """The clips of one feature file, each with its name relative to the source."""

    path: Path
    clips: tuple[tuple[str, Source], ...]


@dataclass(frozen=True)
class Tally:
    """Counts of a folder of feature files."""

    clips: int
    absent: int  # clips that lack the stream
    refused: Mapping[str, str]  # clips that could not be read, and why
    warnings: Mapping[str, tuple[str, ...]]  # of clips that were read
    shards: int
    bytes: int


def listed(source: Path | DataSet) -> list[tuple[str, Source]]:
    """The clips of a data set, each once, or all media files in a folder; with names relative to it."""
    return found(source)[0]


def found(source: Path | DataSet) -> tuple[list[tuple[str, Source]], dict[str, str]]:
    """The clips of a source, as in `listed`, and the other files of a folder, with the reason; hidden files and folders
    are skipped."""
    data = source if isinstance(source, DataSet) else DataSet(file=source)
    source = data.file.absolute()  # workers may have another working directory
    if data.format or not os.path.isdir(source) or is_saved(source):
        media = data.media and data.media.absolute()
        asked = read_data(data.model_copy(update={"file": source, "media": media}))
        clips = dict.fromkeys(example.source for example in asked)
        return [(os.path.relpath(clip.video, source.parent), clip) for clip in clips], {}
    clips, left_out = [], {}
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source).as_posix()
        if file.is_dir() or any(part.startswith(".") for part in name.split("/")):
            continue
        promised = file.suffix.lower() in VIDEO + SOUND and file.is_file()
        if not promised and (why := announced_by(str(file)).flaw):
            left_out[name] = why
        else:
            clips.append((name, Source(file)))
    if not clips:
        others = "; ".join(some(left_out)) or "it is empty"
        raise DataError(f"{source}: contains no media file ({others}); give another folder, or a file of questions")
    return clips, left_out


def some(left_out: Mapping[str, str], most: int = FEW) -> list[str]:
    """The first files that are left out, each with the reason, and the number of the others."""
    lines = [f"{name}: {why}" for name, why in list(left_out.items())[:most]]
    return lines if len(left_out) <= most else [*lines, f"and {len(left_out) - most} more"]


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
    """Encode clips into `out`, `size` of them per file; existing files stay. `retry`: encode files with unreadable
    clips again. `progress` is called with the number of clips of each finished file. Under torchrun, each rank does its
    share, and the tally counts what all ranks have done so far. Several processes may fill a folder at the same time
    if they encode the same clips with the same encoder; DataError otherwise."""
    shards = plan(clips, out.resolve(), size)
    with raised_as(DataError), held(out, "pave encode", _work(job, shards)):
        return _encode(job, shards, out, workers, engine, retry, progress)


def _work(job: Job, shards: Sequence[Shard]) -> str:
    """What processes that fill one folder together must have in common."""
    facts = [job.encoder, dict(job.options), job.dtype, job.base, job.published]
    names = [[name for name, _ in shard.clips] for shard in shards]
    return hashlib.sha256(json.dumps([facts, names], default=str).encode()).hexdigest()


def _encode(
    job: Job,
    shards: Sequence[Shard],
    out: Path,
    workers: int,
    engine: Engine,
    retry: bool,
    progress: Callable[[int], object],
) -> Tally:
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        worker, key = borrow(job)
        WORKERS.give_back(worker)
        if not key.commercial:
            consent(key.encoder, key.licence)
        existing = _existing(shards, key)
        own = shards[rank::ranks]
        left = [shard for shard in own if not _done(shard, existing.get(shard.path, []), retry)]
        progress(sum(len(shard.clips) for shard in own) - sum(len(shard.clips) for shard in left))
        sizes = {shard.path: len(shard.clips) for shard in left}
        work = partial(extract, job, key)
        paths = _in_threads(work, left, workers) if engine == "local" else _on_ray(work, left, workers)
        for path in paths:
            progress(sizes[path])
        return _tally(out, shards, _existing(shards, key))
    finally:
        WORKERS.clear()


def plan(clips: Sequence[tuple[str, Source]], out: Path, size: int) -> list[Shard]:
    """Shards of a list of clips; the same list gives the same shards."""
    parts = [tuple(clips[first : first + size]) for first in range(0, len(clips), size)]
    return [Shard(out / f"{number:05d}.safetensors", part) for number, part in enumerate(parts)]


def _existing(shards: Sequence[Shard], key: FeatureKey) -> dict[Path, Sequence[ClipEntry]]:
    """The finished feature files of these shards. DataError if the folder has others: those are never overwritten."""
    names = {shard.path: [name for name, _ in shard.clips] for shard in shards}
    found = {}
    for path in files(shards[0].path.parent):
        header = read_header(path)
        if header.key != key:
            raise DataError(f"{path}: is of {header.key}, but you are encoding {key}; give another folder")
        if [entry.path for entry in header.clips] != names.get(path):
            raise DataError(f"{path}: is of other clips ({len(header.clips)}) than yours; give another folder")
        found[path] = header.clips
    return found


def _done(shard: Shard, entries: Sequence[ClipEntry], retry: bool) -> bool:
    """Whether a shard is finished: its file exists, and the files of its clips have the same sizes as before."""
    sizes = [size_of(clip) for _, clip in shard.clips]
    return [entry.size for entry in entries] == sizes and not (retry and any(entry.why for entry in entries))


def _tally(out: Path, shards: Sequence[Shard], existing: Mapping[Path, Sequence[ClipEntry]]) -> Tally:
    """Count; once all shards exist, write the lists of quarantine and warnings. The last rank sees them all, so no
    rank has to wait."""
    entries = [entry for path in sorted(existing) for entry in existing[path]]
    refused = {entry.path: entry.why for entry in entries if entry.why}
    warnings = {entry.path: entry.warnings for entry in entries if entry.warnings}
    if len(existing) == len(shards):
        write_list(out / "quarantine.jsonl", [{"file": name, "why": why} for name, why in refused.items()])
        write_list(out / "warnings.jsonl", [{"file": name, "warnings": texts} for name, texts in warnings.items()])
    absent, size = sum(bool(entry.absent) for entry in entries), sum(path.stat().st_size for path in existing)
    return Tally(len(entries), absent, refused, warnings, len(existing), size)


def _in_threads(work: Callable[[Shard], Path], shards: Sequence[Shard], workers: int) -> Iterator[Path]:
    with ThreadPool(workers) as pool:
        yield from pool.imap_unordered(work, shards)


def _on_ray(work: Callable[[Shard], Path], shards: Sequence[Shard], workers: int) -> Iterator[Path]:
    for shard, _ in on_ray(lambda shard: str(work(shard)), shards, workers):
        yield shard.path


def extract(job: Job, key: FeatureKey, shard: Shard) -> Path:
    """Encode the clips of a shard and write its file: the unit of work."""
    entries, tokens = [], {}
    for place, (name, source) in enumerate(shard.clips):
        facts, arrays = ask(job, key, source)
        why = facts.pop("why", "").replace(str(source), name)
        entries.append(ClipEntry(path=name, size=size_of(source), why=why, **facts.get("entry", {})))
        if arrays:
            x, *others = (torch.from_numpy(arrays[part]) for part in PARTS)
            tokens[place] = SideTokens(x.view(DTYPES[job.dtype]), *others, kind=facts["kind"])
    write(shard.path, key, entries, tokens)
    return shard.path
