"""Feature files: the side tokens of many clips in one safetensors file, found by the content of the media.

In: side tokens, the sha256 of their media, and the key of the encoder. Out: a folder of such files, and their side
tokens, even if the clips have been renamed. Files are written atomically, and contain no pickle.
Clips that could not be read are recorded in the same file, with the reason. Knows nothing of how tokens are made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pave.data import Source, whole
from pave.encoder import Encoder
from pave.errors import DataError, MediaError, RecipeError, SignalError, raised_as
from pave.files import json_text, tensorfile
from pave.files.atomic import opened, write_text
from pave.files.validation import Config, parse
from pave.sidechannel import PARTS, SideTokens

FORMAT = "1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAKE = "delete it, and make it again with `pave encode`"
ROOM = "features cannot be saved there: make room on the disk, or fix its permissions"
CHUNK = 1 << 20  # bytes of a media file per read
SCAN = 100_000  # most files and folders in the folder of a scan; ScanNet's longest has some 20,000


class FeatureKey(Config):
    """The encoder that made features. With equal keys, equal clips have equal tokens."""

    encoder: str
    options: dict[str, Any]
    revision: str
    preprocessing: str  # sha256 of encoder, options and revision
    weights: str  # sha256 of the network; empty: it has none, or the features are published ones
    published: bool  # whether the PAVE paper's authors made the tokens
    licence: str
    commercial: bool  # whether the licence allows commercial use
    dtype: Literal["float32", "float16", "bfloat16"]  # of the stored tokens

    @classmethod
    def of(cls, encoder: Encoder, dtype: str, published: bool = False) -> FeatureKey:
        """The key of an encoder's features; `published`: of those that the PAVE paper's authors published."""
        spec = encoder.spec
        return cls(
            encoder=spec.name,
            options=dict(spec.options),
            revision=spec.revision,
            preprocessing=spec.preprocessing,
            weights="" if published else encoder.fingerprint,
            published=published,
            licence=spec.licence,
            commercial=spec.commercial,
            dtype=dtype,  # type: ignore[arg-type]
        )

    def __str__(self) -> str:
        weights = "published features" if self.published else f"weights {self.weights[:12] or 'none'}"
        return f"{self.encoder} {self.preprocessing[:12]} ({weights}, {self.dtype})"


class ClipEntry(Config):
    """One clip in a feature file: it has tokens, or it lacks the stream, or it could not be read."""

    path: str  # relative to the source of `pave encode`
    size: int  # bytes of all its files that existed
    media: str = ""  # sha256 of its bytes
    signal: str = ""  # sha256 of the signal that the encoder reads; empty: the clip has none
    kind: Literal["sequence", "set"] = "sequence"
    sha256: str = ""  # of the tokens; empty: it has none
    absent: str = ""  # why a readable clip has no tokens
    why: str = ""  # why the clip could not be read
    warnings: tuple[str, ...] = ()  # what was wrong with its files, which were read nevertheless


class Contents(Config):
    """The metadata of a feature file."""

    key: FeatureKey
    clips: tuple[ClipEntry, ...]


def write(path: Path, key: FeatureKey, entries: Sequence[ClipEntry], tokens: Mapping[int, SideTokens]) -> None:
    """Write one file atomically; the keys of `tokens` are indices of `entries`."""
    tensors, clips = {}, []
    for place, entry in enumerate(entries):
        if place in tokens:
            own = {part: getattr(tokens[place], part) for part in PARTS}
            entry = entry.model_copy(update={"kind": tokens[place].kind, "sha256": tensorfile.digest("", own)})
            tensors |= {f"{place}.{part}": tensor for part, tensor in own.items()}
        clips.append(entry)
    if (size := sum(tensor.nbytes for tensor in tensors.values())) > tensorfile.MAX_BYTES - tensorfile.MAX_HEADER:
        cause = f"{len(entries)} clips have {size:,} bytes of tokens, too much for one file"
        raise DataError(f"{path}: {cause}; use fewer clips per file (--shard), or a smaller type (--dtype float16)")
    contents = Contents(key=key, clips=tuple(clips)).model_dump(exclude_defaults=True)
    facts = {"pave.features": FORMAT, "contents": json.dumps(contents, sort_keys=True)}
    with raised_as(DataError, path, ROOM):
        tensorfile.write(path, tensors, facts | {"sha256": tensorfile.digest(facts, {})})


def read_header(path: Path) -> Contents:
    """The metadata of a file, without reading its tokens."""
    with raised_as(DataError, remedy=MAKE):
        facts = tensorfile.read_metadata(path)
        version = facts.get("pave.features")
        if version != FORMAT:
            cause = "not a feature file" if version is None else f"of format {version}, this PAVE reads {FORMAT}"
            raise DataError(f"{path}: is {cause}; move it out of the folder, or upgrade PAVE")
        if facts.pop("sha256", "") != tensorfile.digest(facts, {}):
            raise DataError(f"{path}: its header is damaged; {MAKE}")
        contents = json_text.parse_json(path, facts.get("contents", ""), "contents")
    try:
        return parse(Contents, contents, path)
    except RecipeError as error:
        raise DataError(f"{error}; {MAKE}") from None


def write_list(path: Path, facts: Iterable[Mapping[str, object]]) -> None:
    """Write what is said of clips, one line of JSON each."""
    write_text(path, "".join(f"{json.dumps(each)}\n" for each in facts))


def files(folder: Path) -> list[Path]:
    """All feature files of a folder, in order."""
    return sorted(folder.glob("*.safetensors"))


class FeatureFolder:
    """The feature files of one folder, which have the same key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clips: dict[tuple[str, str], tuple[Path, int, ClipEntry]] = {}
        paths = files(folder)
        if not paths:
            raise DataError(f"{folder}: contains no feature file; run `pave encode` first")
        self.key = read_header(paths[0]).key
        for path in paths:
            header = read_header(path)
            if header.key != self.key:
                raise DataError(
                    f"{paths[0]}: is of {self.key}, but {path.name} of {header.key}; put them into separate folders"
                )
            self.clips |= {(entry.media, entry.signal): (path, i, entry) for i, entry in enumerate(header.clips)}

    def find(self, media: str, signal: str = "") -> tuple[SideTokens | None, ClipEntry]:
        """Side tokens of a clip, in float32, or None; and its entry. SignalError if the clip is not in these files."""
        path, place, entry = self.clips.get((media, signal), (self.folder, 0, None))
        if entry is None or entry.why:
            cause = (
                f"could not be encoded: {entry.why}" if entry else f"is not one of the {len(self.clips)} encoded there"
            )
            raise SignalError(f"{path}: the clip {cause}; run `pave encode` on a readable file")
        if entry.absent:
            return None, entry
        with raised_as(DataError, remedy=MAKE):
            tensors = tensorfile.read_some(path, [f"{place}.{part}" for part in PARTS])
        try:
            own = {part: tensors[f"{place}.{part}"] for part in PARTS}
        except KeyError as error:
            raise DataError(f"{path}: the tensor {error} is missing; {MAKE}") from None
        if tensorfile.digest("", own) != entry.sha256:
            raise DataError(f"{path}: the tokens of {entry.path} are damaged; {MAKE}")
        return SideTokens(**own | {"x": own["x"].float()}, kind=entry.kind), entry


def identity(source: Source, sense: str) -> tuple[str, str]:
    """The identity of a clip independent of its name: the sha256 of its media, and of what is read of it: of a signal,
    of the choice of tracks, and of a sound that replaces its own."""
    signals = dict(source.signals)
    named = signals.get(sense)
    several = named if isinstance(named, tuple) else (named,)
    parts = ["" if file is None else _sha256(Path(file)) for file in several]
    parts += [f"{name}={number}" for name, number in source.tracks.items()]
    # An earlier version stored the clip's own sound under the bare hash of a signal `audio`.
    parts += ["replaced"] if sense == "audio" and sense in signals else []
    signal = parts[0] if len(parts) == 1 else text_digest("|".join(parts))
    return _sha256(source.video), signal


def inside(folder: Path, most: int = SCAN) -> list[Path]:
    """All files in a folder that is a signal, in order, and in the folders in it. MediaError if there are more than a
    scan has: a line of a data file may name any folder, and looking through a whole disk would take hours."""
    found, seen = [], 0
    for place, folders, names in os.walk(folder):
        seen += len(folders) + len(names)
        if seen > most:
            raise MediaError(f"{folder}: has more than {most:,} files and folders; give one file, or a scan")
        found += [Path(place, name) for name in names]
    return sorted(file for file in found if file.is_file())


def _sha256(path: Path) -> str:
    """Of a file's bytes and the part of it that is named; of a folder, of the names and bytes of all files in it."""
    if (file := whole(path)) != path:
        return text_digest(f"{_sha256(file)} {path.name}")
    if os.path.isdir(path):
        return text_digest("".join(f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\0" for file in inside(path)))
    digest = hashlib.sha256()
    try:
        with opened(path) as file:
            while block := file.read(CHUNK):
                digest.update(block)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror or error}); fix its path or permissions") from None
    return digest.hexdigest()


def text_digest(text: str) -> str:
    """sha256 of a text with file names in it, which need not be UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
