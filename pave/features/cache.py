"""Frozen features of clips, computed once and cached on disk, for training and evaluation.

In: media files, and optionally folders of feature files (pave/features/files.py), whose side tokens replace encoding.
Out: `ClipFeatures`, by file. A file that cannot be read goes to a quarantine list with the reason, and the run goes on
without it. Cached features are reused only for the same file, vision tower, key frames and encoders, and only if their
checksum is right.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pave.data import Source
from pave.encoder import Encoder, consent, mixed
from pave.errors import DataError, FileError, MediaError, PatchMismatch, SignalError, raised_as
from pave.features.files import ROOM, FeatureFolder, identity, inside, text_digest
from pave.files import atomic, tensorfile
from pave.media.clip import Clip, decode_many
from pave.media.decoding import Timeout
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.sidechannel import PARTS, SideTokens

MAX_WORKERS = 8  # decoding processes; with more, the vision tower is the bottleneck
OnClip = Callable[[int, int], None]  # called with the number of finished clips, and of all


class FeatureCache:
    """Features of one base and one set of encoders. Those in a folder are memory-mapped if they are large, so they may
    exceed memory; with `folder=None` they are held in memory only. `made`: folders of feature files. `timeout`: of
    decoding one file, as in `Clip.read`."""

    def __init__(
        self,
        model: PatchedModel,
        encoders: Sequence[Encoder],
        folder: Path | None = None,
        made: Sequence[Path] = (),
        timeout: Timeout = "auto",
    ) -> None:
        self.model, self.folder = model, folder
        self.timeout: Timeout = timeout
        self.refused: dict[Source, str] = {}  # unreadable clips, and why
        self.made: dict[str, tuple[Encoder, FeatureFolder]] = {}
        for features in map(FeatureFolder, made):
            encoder = _encoder_of(model, encoders, features)
            _, first = self.made.setdefault(encoder.spec.preprocessing, (encoder, features))
            if first.key != features.key:
                raise DataError(
                    f"{first.folder}: is of {first.key}, but {features.folder} of {features.key}; use one of them"
                )
            first.clips |= features.clips
        self.encoders = [encoder for encoder in encoders if encoder.spec.preprocessing not in self.made]
        self.hears = any(encoder.hears for encoder in self.encoders)
        self._sensors = frozenset(encoder.spec.preprocessing for encoder in encoders if not encoder.hears)
        tower = "" if folder is None else model.host.vision_fingerprint()
        keys = [features.key.model_dump_json() for _, features in self.made.values()]
        self._networks = json.dumps([tower, *(encoder.spec.preprocessing for encoder in encoders), *keys])

    def weights(self, encoder: Encoder) -> str:
        """sha256 of the weights that made the tokens of feature files; empty: unknown, or no such files."""
        made = self.made.get(encoder.spec.preprocessing)
        return made[1].key.weights if made else ""

    def read(self, sources: Sequence[Source], on_clip: OnClip | None = None) -> dict[Source, ClipFeatures]:
        """Features of all readable clips, in the given order; `on_clip` is called after each that is encoded."""
        found = {source: self._cached(self._file(source)) for source in sources}
        fresh = [source for source, features in found.items() if features is None]
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
        files = [(source.video, source.options(self.hears)) for source in fresh]
        host, encoders = self.model.host, self.encoders
        size = host.size if all(encoder.hears for encoder in encoders) else None  # others may look at the pictures
        options = {"frames": host.frames, "size": size, "mono": mixed(encoders)}
        clips = decode_many(files, workers=workers, timeout=self.timeout, **options)
        for done, (source, clip) in enumerate(zip(fresh, clips, strict=True), len(found) - len(fresh) + 1):
            found[source] = self._encode(source, clip)
            if on_clip:
                on_clip(done, len(found))
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"file": str(source), "why": why}) for source, why in self.refused.items()]
            atomic.write_text(self.folder / "quarantine.jsonl", "".join(f"{line}\n" for line in lines))
        return {source: features for source, features in found.items() if features is not None}

    def _encode(self, source: Source, clip: Clip | MediaError) -> ClipFeatures | None:
        """Encode one clip. Never several in one batch: their last bits would depend on each other."""
        try:
            if isinstance(clip, MediaError):
                raise clip
            clip = clip.beside(source.beside(self.hears), timeout=self.timeout)
            features = self.model.encode_clip(clip, self.encoders)
            sides, absent, told = dict(features.sides), dict(features.absent), dict.fromkeys(features.warnings)
            for key, (encoder, made) in self.made.items():
                sides[key], entry = made.find(*identity(source, encoder.spec.sense))
                absent |= {key: entry.absent} if entry.absent else {}
                told |= dict.fromkeys(entry.warnings)
            features = replace(features, sides=sides, absent=absent, warnings=tuple(told), sensors=self._sensors)
        except (MediaError, SignalError) as error:
            self.refused[source] = str(error)
            return None
        self.refused.pop(source, None)
        if (target := self._file(source)) is None:
            return features
        self._write(target, features)
        return self._cached(target)  # memory-mapped, so that the features need not stay in memory

    def _file(self, source: Source) -> Path | None:
        """The cache file of a clip, named by the paths, sizes and modification times of its files, the names of its
        signals, the chosen tracks, and the networks. None without a folder, or if a file of the clip is missing, or a
        folder no signal."""
        if self.folder is None:
            return None
        try:
            facts = [fact for file in source.files for fact in _facts(file)]
        except (OSError, MediaError):
            return None
        chosen = [json.dumps(source.tracks)] if source.tracks else []
        # Earlier versions cached the clip's own sound under a name that has a signal `audio`.
        chosen += ["audio replaced"] if "audio" in dict(source.signals) else []
        key = "|".join([*facts, json.dumps(source.signals), *chosen, self._networks])
        return self.folder / f"{text_digest(key)[:32]}.safetensors"

    def _write(self, target: Path, features: ClipFeatures) -> None:
        tensors = {"vision": features.vision, "tokens": features.tokens, "times": features.times}
        tensors |= {} if features.deep is None else {"deep": features.deep}
        present = {key: side for key, side in features.sides.items() if side is not None}
        for key, side in present.items():
            tensors |= {f"{key}.{part}": getattr(side, part) for part in PARTS}
        facts = {"absent": json.dumps(dict(features.absent)), "sides": json.dumps(sorted(features.sides))}
        facts["kinds"] = json.dumps({key: side.kind for key, side in present.items()})
        facts |= {"warnings": json.dumps(features.warnings)} if features.warnings else {}
        with raised_as(DataError, target, ROOM):
            tensorfile.write_sealed(target, tensors, facts)

    def _cached(self, file: Path | None) -> ClipFeatures | None:
        """The features in a cache file; None if the clip must be encoded (again), also if the file is damaged."""
        if file is None:
            return None
        try:
            info = file.stat()
            tensors, facts = tensorfile.read_sealed(file, mapped=True)
        except tensorfile.NotMapped as error:
            raise DataError(str(error)) from None
        except (FileError, OSError):
            return None
        kinds = json.loads(facts["kinds"])
        sides: dict[str, SideTokens | None] = dict.fromkeys(json.loads(facts["sides"]))
        for key, kind in kinds.items():
            sides[key] = SideTokens(*(tensors[f"{key}.{part}"] for part in PARTS), kind=kind)
        absent, warnings = json.loads(facts["absent"]), tuple(json.loads(facts.get("warnings", "[]")))
        parts = tensors["vision"], tensors["tokens"], tensors["times"]
        verify = partial(_refuse_cut, file, info)
        return ClipFeatures(*parts, sides, absent, tensors.get("deep"), warnings, self._sensors, verify)


def _refuse_cut(file: Path, info: os.stat_result) -> None:
    with raised_as(DataError, remedy="the next run encodes the clip again; find out what writes there"):
        tensorfile.refuse_cut(file, info)


def _encoder_of(model: PatchedModel, encoders: Sequence[Encoder], features: FeatureFolder) -> Encoder:
    """The encoder of these feature files. Refused: files of another encoder, and of other weights than those of this
    base's vision tower, or those that an applied patch was trained with."""
    key, named = features.key, f"{features.folder}: has features of {features.key}"
    if not key.commercial:
        consent(key.encoder, key.licence)
    encoder = next((each for each in encoders if each.spec.preprocessing == key.preprocessing), None)
    if encoder is None:
        needed = ", ".join(f"{each.spec.name} {each.spec.preprocessing[:12]}" for each in encoders)
        raise DataError(
            f"{named}, but needed are those of {needed}; encode with the same encoder, revision and options"
        )
    if type(encoder).network is Encoder.network and key.weights != encoder.fingerprint:
        own = encoder.fingerprint[:12]
        raise DataError(f"{named}, but this base has weights {own}; encode them again with this base")
    for attached in model.attached():
        for facts in attached.config.senses.values():
            comparable = facts.preprocessing == key.preprocessing and facts.weights and key.weights
            if comparable and facts.weights != key.weights:
                cause = f"was trained with features of weights {facts.weights[:12]}, {features.folder} is of"
                raise PatchMismatch(attached.config.name, f"{cause} {key.weights[:12]}", "encode with its weights")
    return encoder


def _facts(path: Path) -> list[str]:
    """Path, size and modification time of a file, or of all files in a folder."""
    files = inside(path) if os.path.isdir(path) else [path]
    stats = [(file, file.stat()) for file in files]
    return [str(path.resolve()), *(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats)]
