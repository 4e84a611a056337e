"""Getting the published weights of encoders: only the part that is needed, kept as safetensors with its sha256.

In: a `Release`. Out: a file that the encoder finds by itself. A part of a file of torch.save comes by ranges of the zip
that it is, each record checked by its CRC; a part of safetensors by ranges of its tensors; whole releases of the Hub
through its client. What has arrived is kept: the next attempt goes on from there. Knows nothing of clips.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers
from torch import Tensor

from pave.encoder import load_encoder, missing
from pave.errors import EncoderError, FileDamaged, FileError, PatchNotFound, nearest
from pave.files import json_text, pickled, tensorfile, torchzip
from pave.files.atomic import reading, replacing
from pave.hub.client import commit_of, download
from pave.hub.remote import AGAIN, PIECE, RangeFile, Remote
from pave.senses.weights import INDEX, WHOLE, Release, misfit

# Encoders whose weights `pave weights get` fetches, and their options.
NAMES: dict[str, dict[str, str]] = {
    "imagebind-audio": {},
    "languagebind-audio": {},
    "languagebind-video": {},
    "rgbd-geometry": {"preset": "llava3d"},
}
PICKLE = 64 << 20  # most bytes of the pickle of a file of torch.save; ImageBind's has 0.2 MB
SPARE = 64 << 20  # bytes of a disk that are left free
Count = Callable[[int, int], None]  # called with bytes that have arrived, and of all


@dataclass(frozen=True)
class Got:
    """What is on this machine now."""

    release: Release
    path: Path
    fetched: int  # bytes that crossed the network; 0: it was there
    sha256: str  # of the tensors; of a whole release, of its file


def releases(name: str) -> tuple[Release, ...]:
    """The published weights of an encoder."""
    found = () if missing(name) else load_encoder(name, **NAMES.get(name, {})).releases
    if not found:
        cause = "is no encoder" if missing(name) else "has no weights to get"
        raise EncoderError(f"{name} {cause}; {nearest(name, NAMES)}")
    return found


def get(release: Release, *, source: str = "", again: bool = False, progress: Count = lambda done, all: None) -> Got:
    """Have a release on this machine. source: a mirror's address or a local file instead of the published address."""
    if release.present and not again and not source:
        return Got(release, Path(release.source) if release.kept else _whole(release), 0, "")
    if release.kept is None:
        path = _whole(release)
        return Got(release, path, path.stat().st_size, _checked(path))
    with _folder(release) as folder:
        tensors, facts, fetched = _part(release, source, folder, progress)
        tensors = {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}
        sha256 = tensorfile.digest("", tensors)
        if release.sha256 and sha256 != release.sha256:
            cause = f"its tensors have sha256 {sha256}, published is {release.sha256}"
            raise FileDamaged(facts["from"], cause, "nothing was kept; use another mirror, or ask who publishes it")
        _refuse_full(release.kept.parent, sum(tensor.nbytes for tensor in tensors.values()))
        tensorfile.write_sealed(release.kept, tensors, {**facts, "licence": release.licence, "tensors": sha256})
    return Got(release, release.kept, fetched, sha256)


def _part(
    release: Release, source: str, folder: Path, progress: Count
) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """The tensors of the part, where they are from, and the bytes fetched."""
    if source and "://" not in source:
        return _of_file(Path(source), release), {"from": Path(source).name}, 0
    if not (source or release.address):
        return _of_shard(release, progress)
    remote = Remote(source or release.address)
    facts = {"from": remote.address, "version": remote.version, "bytes": str(remote.size)}
    store = Store(folder, facts)
    if remote.ranges and remote.read(0, 4) == b"PK\x03\x04":
        return _of_zip(remote, release, store, progress), facts, store.fetched
    whole = store.download(remote, progress)
    return _of_file(whole, release), facts, store.fetched


def _of_file(path: Path, release: Release) -> dict[str, Tensor]:
    """The part of a local file."""
    safe = path.suffix == ".safetensors"
    found = tensorfile.read(path)[0] if safe else pickled.read(path, inside=release.inside)
    return _some({name: tensor for name, tensor in found.items() if release.inside in name}, path, release)


def _of_zip(remote: Remote, release: Release, store: Store, progress: Count) -> dict[str, Tensor]:
    """The part of a file of torch.save, by ranges of its zip."""
    with _damaged(remote.address), zipfile.ZipFile(file := RangeFile(remote)) as archive:
        members = {each.filename: each for each in archive.infolist()}
        after = dict(_next_offsets(archive, remote.size))
        (pickle,) = (name for name in members if name.endswith("/data.pkl") and name.count("/") == 1)
        if members[pickle].file_size > PICKLE:
            raise ValueError(f"its pickle has {members[pickle].file_size:,} bytes")
        top = pickle.removesuffix("data.pkl")
        file.prefetch(members[pickle].header_offset, after[pickle])
        entries = torchzip.outline(archive.read(pickle), remote.address)
        records = {f"{top}data/{record}": names for record, names in torchzip.part_of(entries, release.inside)}
        total, done = sum(members[record].file_size for record in records), 0
        store.refuse_full(total)
        tensors: dict[str, Tensor] = {}
        for record, names in records.items():
            member = members[record]

            def fetched(member: zipfile.ZipInfo = member, record: str = record) -> bytes:
                file.prefetch(member.header_offset, after[record], store.count)
                return archive.read(member)

            data = store.record(record.rpartition("/")[2], member.file_size, member.CRC, fetched)
            tensors |= {name: entries[name].of(data) for name in names}
            progress(done := done + len(data), total)
    return _some(tensors, remote.address, release)


def _next_offsets(archive: zipfile.ZipFile, size: int) -> Iterator[tuple[str, int]]:
    """For each member, where the next one begins."""
    members = sorted(archive.infolist(), key=lambda each: each.header_offset)
    ends = [*(each.header_offset for each in members[1:]), archive.start_dir]
    for member, end in zip(members, ends, strict=True):
        if not member.header_offset < end <= size or member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member.filename!r} is packed in another way than torch does it")
        yield member.filename, end


def _of_shard(release: Release, progress: Count) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """The part of a release in safetensors on the Hub, by ranges of one of its files."""
    commit, _ = commit_of(release.repo, release.revision, [INDEX])
    try:
        weights = json_text.read_json(Path(download(release.repo, INDEX, commit))).get("weight_map")
    except PatchNotFound:  # a release in one file has no index
        weights = None
    names = weights if isinstance(weights, dict) else {}
    shards = {str(shard) for name, shard in names.items() if release.inside in name} or {WHOLE[0]}
    tensors: dict[str, Tensor] = {}
    fetched = 0
    for shard in sorted(shards):
        address = hf_hub_url(release.repo, shard, revision=commit)
        remote = Remote(address, {key: str(text) for key, text in build_hf_headers(library_name="pave").items()})
        tensors |= _of_safetensors(remote, release.inside, progress)
        fetched += sum(tensor.nbytes for tensor in tensors.values())
    facts = {"from": f"{release.repo}@{commit}", "version": commit}
    return _some(tensors, release.repo, release), facts, fetched


def _of_safetensors(remote: Remote, inside: str, progress: Count) -> dict[str, Tensor]:
    with _damaged(remote.address):
        length = int.from_bytes(remote.read(0, 8), "little")
        if length > min(tensorfile.MAX_HEADER, remote.size - 8):
            raise ValueError(f"its first bytes announce a header of {length:,} bytes")
        header = json_text.parse_json(Path(remote.address), remote.read(8, 8 + length), "header")
        wanted = {name: each for name, each in header.items() if inside in name and name != "__metadata__"}
        tensors: dict[str, Tensor] = {}
        for done, (name, entry) in enumerate(wanted.items(), 1):
            begin, end = entry["data_offsets"]
            data, dtype = remote.read(8 + length + begin, 8 + length + end), tensorfile.DTYPES[entry["dtype"]]
            tensors[name] = torch.frombuffer(bytearray(data), dtype=dtype).reshape(entry["shape"])
            progress(done, len(wanted))
        return tensors


def _some(tensors: dict[str, Tensor], source: str | Path, release: Release) -> dict[str, Tensor]:
    """The tensors, if they are the whole part: each that the network needs, finite."""
    if problem := misfit(release, tensors):
        raise FileDamaged(source, problem, release.remedy)
    return tensors


def _whole(release: Release) -> Path:
    """The file of a release on the Hub, in the Hub's cache, or where the user says."""
    return release.find(*WHOLE)


def _checked(path: Path) -> str:
    """sha256 of a file in the Hub's cache, which names its large files so."""
    sha256 = hashlib.sha256()
    with reading(path) as file:
        while piece := file.read(PIECE):
            sha256.update(piece)
    named, found = path.resolve().name, sha256.hexdigest()
    if re.fullmatch("[0-9a-f]{64}", named) and named != found:
        raise FileDamaged(path, f"has sha256 {found}, the Hub says {named}", "delete it, and get it again")
    return found


# ---------------------------------------------------------------- what has arrived


class Store:
    """Records of an unfinished download, in a folder of one version of one file."""

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        self.folder, self.fetched = folder, 0
        known = folder / "facts.json"
        text = json_text.canonical(facts)
        if not known.is_file() or known.read_text("utf-8") != text:
            for left in folder.iterdir():
                left.unlink()
            known.write_text(text, "utf-8")

    def count(self, size: int) -> None:
        self.fetched += size

    def record(self, name: str, size: int, crc: int, fetch: Callable[[], bytes]) -> bytes:
        """A record that has arrived before, or is fetched now."""
        file = self.folder / f"{int(name)}.bin"  # torch numbers them
        with suppress(OSError):
            data = file.read_bytes()
            if len(data) == size and zlib.crc32(data) == crc:
                return data
        data = fetch()
        with replacing(file) as target:
            target.write(data)
        return data

    def download(self, remote: Remote, progress: Count) -> Path:
        """The whole file."""
        file = self.folder / "whole.bin"
        begin = file.stat().st_size if file.is_file() and remote.ranges else 0
        self.refuse_full(remote.size - begin)
        if not remote.size or begin < remote.size:
            pieces = remote.pieces(begin, remote.size) if remote.ranges else remote.stream()
            with file.open("ab" if begin else "wb") as target:
                for piece in pieces:
                    target.write(piece)
                    self.count(len(piece))
                    progress(begin + self.fetched, remote.size)
        if remote.size and (got := file.stat().st_size) != remote.size:
            raise FileError(remote.address, f"sent {got:,} bytes of {remote.size:,}", "try again from the start")
        return file

    def refuse_full(self, need: int) -> None:
        have = sum(file.stat().st_size for file in self.folder.iterdir())
        _refuse_full(self.folder, max(0, need - have))


def _refuse_full(folder: Path, need: int) -> None:
    """FileError if a folder's disk has no space for so many bytes."""
    free = shutil.disk_usage(folder).free
    if need + SPARE > free:
        cause = f"its disk has {free:,} bytes free, {need + SPARE:,} are needed"
        raise FileError(folder, cause, "free some, or set HF_HOME to a folder on another disk")


@contextmanager
def _folder(release: Release) -> Iterator[Path]:
    """The folder of an unfinished download; removed when it is finished."""
    assert release.kept
    folder = release.kept.with_suffix(".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        cause = f"cannot be written ({error.strerror or error})"
        raise FileError(folder, cause, "free disk space or fix the permissions; what has arrived is kept") from None
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _damaged(address: str) -> Iterator[None]:
    """Errors of the content as FileDamaged."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, NotImplementedError) as error:
        raise FileDamaged(
            address, f"is not what torch or safetensors write, or arrived damaged ({error})", AGAIN
        ) from None
