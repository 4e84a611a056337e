"""Frozen features of clips, computed once and kept on disk: what training and evaluation read at every step.

In: media files, and perhaps folders of feature files (pave/features/files.py), whose side tokens are taken instead of
encoding. Out: `ClipFeatures`, by file. A file that cannot be read is put on a quarantine list with its reason,
and the run goes on without it. A kept feature is used again only for the same file, eyes of the base, key frames and
encoders, and only when every bit of it is as it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pave.data import Source
from pave.encoder import Encoder, consent
from pave.errors import DataError, FileError, MediaError, PatchMismatch, SignalError, raised_as
from pave.features.files import ROOM, FeatureFolder, identity
from pave.files import tensorfile
from pave.media.clip import Clip, decode_many
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.sidechannel import PARTS, SideTokens

MAX_WORKERS = 8  # decoding processes; by then the vision tower is what takes the time
OnClip = Callable[[int, int], None]  # how many clips are seen, of how many


class FeatureCache:
    """Features of one base and one set of encoders. In a folder, where they stay until they are touched, so that more
    clips than memory can be learned from; with `folder=None` kept in memory only. `made`: folders of feature files."""

    def __init__(
        self, model: PatchedModel, encoders: Sequence[Encoder], folder: Path | None = None, made: Sequence[Path] = ()
    ) -> None:
        self.model, self.folder = model, folder
        self.refused: dict[Source, str] = {}  # clips that could not be read, and why
        self.made: dict[str, tuple[Encoder, FeatureFolder]] = {}
        for features in map(FeatureFolder, made):
            encoder = _maker(model, encoders, features)
            _, held = self.made.setdefault(encoder.spec.preprocessing, (encoder, features))
            if held.key != features.key:
                raise DataError(
                    f"{held.folder}: holds {held.key}, and {features.folder} {features.key}; give one of them"
                )
            held.places |= features.places
        self.encoders = [encoder for encoder in encoders if encoder.spec.preprocessing not in self.made]
        eyes = "" if folder is None else model.host.vision_fingerprint()
        keys = [features.key.model_dump_json() for _, features in self.made.values()]
        self._looker = json.dumps([eyes, *(encoder.spec.preprocessing for encoder in encoders), *keys])

    def weights(self, encoder: Encoder) -> str:
        """sha256 of the weights that tokens of feature files come from; empty: not known, or there are none such."""
        held = self.made.get(encoder.spec.preprocessing)
        return held[1].key.weights if held else ""

    def read(self, sources: Sequence[Source], seeing: OnClip | None = None) -> dict[Source, ClipFeatures]:
        """Features of all clips that can be read, in the order given; `seeing` is called after every look."""
        found = {source: self._kept(source) for source in sources}
        fresh = [source for source, features in found.items() if features is None]
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
        clips = decode_many([source.video for source in fresh], workers=workers, frames=self.model.host.frames)
        for done, (source, clip) in enumerate(zip(fresh, clips, strict=True), len(found) - len(fresh) + 1):
            found[source] = self._see(source, clip)
            if seeing:
                seeing(done, len(found))
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"file": str(source), "why": why}) for source, why in self.refused.items()]
            (self.folder / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return {source: features for source, features in found.items() if features is not None}

    def _see(self, source: Source, clip: Clip | MediaError) -> ClipFeatures | None:
        """Look at one clip. Never at several in one pass: their last bits would depend on their neighbours."""
        try:
            if isinstance(clip, MediaError):
                raise clip
            features = self.model.encode_clip(clip.beside(dict(source.signals)), self.encoders)
            sides, absent = dict(features.sides), dict(features.absent)
            for key, (encoder, held) in self.made.items():
                sides[key], why = held.find(*identity(source, encoder.spec.sense))
                absent |= {key: why} if why else {}
            features = replace(features, sides=sides, absent=absent)
        except (MediaError, SignalError) as error:
            self.refused[source] = str(error)
            return None
        self.refused.pop(source, None)
        if self.folder is None:
            return features
        self._keep(self._file(self.folder, source), features)
        return self._kept(source)

    def _file(self, folder: Path, source: Source) -> Path:
        """Where a clip's features are kept: named by the places, sizes and times of change of its files, what each
        signal is called, and by who looked at it."""
        facts = [fact for file in source.files for fact in _facts(file)]
        key = "|".join([*facts, json.dumps(source.signals), self._looker])
        return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _keep(self, target: Path, features: ClipFeatures) -> None:
        tensors = {"vision": features.vision, "tokens": features.tokens, "times": features.times}
        tensors |= {} if features.deep is None else {"deep": features.deep}
        present = {key: side for key, side in features.sides.items() if side is not None}
        for key, side in present.items():
            tensors |= {f"{key}.{part}": getattr(side, part) for part in PARTS}
        facts = {"absent": json.dumps(dict(features.absent)), "sides": json.dumps(sorted(features.sides))}
        facts["kinds"] = json.dumps({key: side.kind for key, side in present.items()})
        with raised_as(DataError, target, ROOM):
            tensorfile.write(target, tensors, facts | {"sha256": tensorfile.digest(facts, tensors)})

    def _kept(self, source: Source) -> ClipFeatures | None:
        """What was kept for these very files; None for what must be seen (again), a damaged file included."""
        if self.folder is None:
            return None
        try:
            tensors, facts = tensorfile.read(self._file(self.folder, source), mapped=True)
        except (OSError, FileError):  # the first: a file of the clip is gone
            return None
        if facts.pop("sha256", "") != tensorfile.digest(facts, tensors):
            return None
        kinds = json.loads(facts["kinds"])
        sides: dict[str, SideTokens | None] = dict.fromkeys(json.loads(facts["sides"]))
        for key, kind in kinds.items():
            sides[key] = SideTokens(*(tensors[f"{key}.{part}"] for part in PARTS), kind=kind)
        absent = json.loads(facts["absent"])
        return ClipFeatures(tensors["vision"], tensors["tokens"], tensors["times"], sides, absent, tensors.get("deep"))


def _maker(model: PatchedModel, encoders: Sequence[Encoder], features: FeatureFolder) -> Encoder:
    """The encoder that feature files are of. Refused: those of none of these, and those of other weights than are
    known: of a base's eyes, or of what an applied patch was trained with."""
    key, named = features.key, f"{features.folder}: holds features of {features.key}"
    if not key.commercial:
        consent(key.encoder, key.licence)
    encoder = next((each for each in encoders if each.spec.preprocessing == key.preprocessing), None)
    if encoder is None:
        asked = ", ".join(f"{each.spec.name} {each.spec.preprocessing[:12]}" for each in encoders)
        raise DataError(f"{named}, and asked for is {asked}; encode with the same encoder, revision and options")
    if type(encoder).network is Encoder.network and key.weights != encoder.fingerprint:
        here = encoder.fingerprint[:12]
        raise DataError(f"{named}, and here they would be of weights {here}; encode them again with this base")
    for attached in model.attached():
        for facts in attached.config.senses.values():
            known = facts.preprocessing == key.preprocessing and facts.weights and key.weights
            if known and facts.weights != key.weights:
                cause = f"was trained with features of weights {facts.weights[:12]}, those in {features.folder} are of"
                raise PatchMismatch(attached.config.name, f"{cause} {key.weights[:12]}", "encode with its weights")
    return encoder


def _facts(path: Path) -> list[str]:
    """Place, size and time of change of a file, or of all in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files]
    return [str(path.resolve()), *(f"{file.name}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats)]
