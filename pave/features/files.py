"""Feature files: the side tokens of many clips in one safetensors file, found again by what was heard or seen.

In: side tokens, the sha256 of the media that they were made of, and the key of who made them. Out: a folder of such
files, and side tokens again, whatever the clips are called by then. A file is written in one piece, opened without a
pickle, and tokens come into memory when they are touched. What could not be read stands in the same file, with its
reason. Knows nothing of how tokens are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pave.config import Config, parse
from pave.data import Source, whole
from pave.encoder import Encoder
from pave.errors import DataError, MediaError, RecipeError, SignalError, raised_as
from pave.files import json_text, tensorfile
from pave.sidechannel import PARTS, SideTokens

FORMAT = "1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MAKE = "remove it, and make it again with `pave encode`"
ROOM = "features cannot be kept there: make room, or mend the rights"
CHUNK = 1 << 20  # bytes of a media file at once


class FeatureKey(Config):
    """Who made features. Where two keys are equal, equal clips have equal tokens, but for their `dtype`."""

    encoder: str
    options: dict[str, Any]
    revision: str
    preprocessing: str  # sha256 of encoder, options and revision
    weights: str  # sha256 of the network; empty: there is none, or PAVE's authors had it
    published: bool  # whether tokens are those of PAVE's authors
    licence: str
    commercial: bool  # whether the licence allows such use
    dtype: Literal["float32", "float16", "bfloat16"]  # that the tokens are kept in

    @classmethod
    def of(cls, encoder: Encoder, dtype: str, published: bool = False) -> FeatureKey:
        """Of features that an encoder makes now, or that PAVE's authors made with theirs."""
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
        weights = "weights of PAVE's authors" if self.published else f"weights {self.weights[:12] or 'none'}"
        return f"{self.encoder} {self.preprocessing[:12]} ({weights}, {self.dtype})"


class ClipEntry(Config):
    """One clip in a feature file: its tokens are there, or the stream is absent from it, or it could not be read."""

    path: str  # as it was given
    size: int  # bytes of its files together, as far as they were there
    media: str = ""  # sha256 of its bytes
    signal: str = ""  # sha256 of the files of the signal that the encoder reads; empty: the clip has none
    kind: Literal["sequence", "set"] = "sequence"
    sha256: str = ""  # of the tokens; empty: there are none
    absent: str = ""  # why there are none in a sound clip
    why: str = ""  # why the clip could not be read


class Contents(Config):
    """What a file says of itself."""

    key: FeatureKey
    clips: tuple[ClipEntry, ...]


def write(path: Path, key: FeatureKey, entries: Sequence[ClipEntry], tokens: Mapping[int, SideTokens]) -> None:
    """Write one file in one piece; `tokens` are by the place of their clip among the `entries`."""
    tensors, told = {}, []
    for place, entry in enumerate(entries):
        if place in tokens:
            own = {part: getattr(tokens[place], part) for part in PARTS}
            entry = entry.model_copy(update={"kind": tokens[place].kind, "sha256": tensorfile.digest("", own)})
            tensors |= {f"{place}.{part}": tensor for part, tensor in own.items()}
        told.append(entry)
    if (size := sum(tensor.nbytes for tensor in tensors.values())) > tensorfile.MAX_BYTES - tensorfile.MAX_HEADER:
        cause = f"{len(entries)} clips have {size:,} bytes of tokens, more than one file should hold"
        raise DataError(f"{path}: {cause}; put fewer clips into one (--shard), or round them (--dtype float16)")
    told = Contents(key=key, clips=tuple(told)).model_dump(exclude_defaults=True)
    facts = {"pave.features": FORMAT, "contents": json.dumps(told, sort_keys=True)}
    with raised_as(DataError, path, ROOM):
        tensorfile.write(path, tensors, facts | {"sha256": tensorfile.digest(facts, {})})


def read_header(path: Path) -> Contents:
    """What a file says of itself; tokens are not read."""
    with raised_as(DataError, remedy=MAKE):
        facts = tensorfile.read_metadata(path)
        version = facts.get("pave.features")
        if version != FORMAT:
            cause = "no feature file of PAVE" if version is None else f"of format {version}, this PAVE reads {FORMAT}"
            raise DataError(f"{path}: is {cause}; take it out of the folder, or upgrade PAVE")
        if facts.pop("sha256", "") != tensorfile.digest(facts, {}):
            raise DataError(f"{path}: its header is damaged; {MAKE}")
        told = json_text.parse_json(path, facts.get("contents", ""), "contents")
    try:
        return parse(Contents, told, path)
    except RecipeError as error:
        raise DataError(f"{error}; {MAKE}") from None


def files(folder: Path) -> list[Path]:
    """All feature files of a folder, in order."""
    return sorted(folder.glob("*.safetensors"))


class Features:
    """The feature files of one folder, by clip. They share one key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[tuple[str, str], tuple[Path, int, ClipEntry]] = {}
        found = files(folder)
        if not found:
            raise DataError(f"{folder}: holds no feature file; {MAKE}")
        self.key = read_header(found[0]).key
        for path in found:
            here = read_header(path)
            if here.key != self.key:
                raise DataError(
                    f"{found[0]}: holds {self.key}, and {path.name} {here.key}; give each a folder of its own"
                )
            self.places |= {(entry.media, entry.signal): (path, i, entry) for i, entry in enumerate(here.clips)}

    def find(self, media: str, signal: str = "") -> tuple[SideTokens | None, str]:
        """Side tokens of a clip, in float32; or None, and why. SignalError: nothing is known of this clip."""
        path, place, entry = self.places.get((media, signal), (self.folder, 0, None))
        if entry is None or entry.why:
            cause = (
                f"could not be encoded: {entry.why}" if entry else f"is none of the {len(self.places)} encoded there"
            )
            raise SignalError(f"{path}: the clip {cause}; mend it, or encode it too")
        if entry.absent:
            return None, entry.absent
        with raised_as(DataError, remedy=MAKE):
            tensors, _ = tensorfile.read(path, mapped=True)
        try:
            own = {part: tensors[f"{place}.{part}"] for part in PARTS}
        except KeyError as error:
            raise DataError(f"{path}: lacks the tensor {error}; {MAKE}") from None
        if tensorfile.digest("", own) != entry.sha256:
            raise DataError(f"{path}: the tokens of {entry.path} are damaged; {MAKE}")
        return SideTokens(**own | {"x": own["x"].float()}, kind=entry.kind), ""


def identity(source: Source, sense: str) -> tuple[str, str]:
    """What a clip is to an encoder, whatever it is called: the sha256 of its media, and of the signal that is read."""
    named = dict(source.signals).get(sense)
    several = named if isinstance(named, tuple) else (named,)
    parts = ["" if file is None else _sha256(Path(file)) for file in several]
    signal = parts[0] if len(parts) == 1 else hashlib.sha256("|".join(parts).encode()).hexdigest()
    return _sha256(source.video), signal


def _sha256(path: Path) -> str:
    """Of a file's bytes, and of which part is meant; of a folder, of the names and bytes of all that lies in it."""
    if (file := whole(path)) != path:
        return hashlib.sha256(f"{_sha256(file)} {path.name}".encode()).hexdigest()
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        told = "".join(f"{file.relative_to(path).as_posix()}\0{_sha256(file)}\0" for file in inside)
        return hashlib.sha256(told.encode()).hexdigest()
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(CHUNK):
                found.update(block)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror or error}); mend its path or rights") from None
    return found.hexdigest()
