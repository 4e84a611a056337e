"""Frozen features of clips, computed once and cached on disk, for training and evaluation.

In: media files, and optionally folders of feature files (pave/features/files.py), whose side tokens replace encoding.
Out: the `Stored` clips, by file; their tensors are read when they are asked for. A file that cannot be read goes to a
quarantine list with the reason, and the run goes on without it. Cached features are reused only for the same file,
vision tower, key frames and encoders, and only if their checksum is right; damaged ones are encoded again.

What is kept of the pictures (`data.cache`): "keep", the features of the vision tower; "none", the pictures themselves,
without loss and at the size that the tower reads, so that the tower runs whenever a clip is asked for, and gives the
same bits; "auto", the former if they fit (pave/features/room.py). Side tokens are small, and always kept.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from pave.data import Source
from pave.encoder import Encoder, consent
from pave.errors import DataError, FileError, MediaError, PatchMismatch, SignalError
from pave.features import room
from pave.features.files import FeatureFolder, identity, inside, text_digest, write_list
from pave.features.pictures import packed, unpacked
from pave.features.shards import Shards
from pave.features.stored import Features, Finish, Stored, known
from pave.media.clip import Clip, decode_many
from pave.media.decoding import Timeout
from pave.model.inputs import ClipFeatures
from pave.model.patched import PatchedModel
from pave.sidechannel import PARTS, SideTokens

MAX_WORKERS = 8  # decoding processes; with more, the vision tower is the bottleneck
PICTURES = "-pictures"  # ends the key of a clip of which pictures are kept, not features
OnClip = Callable[[int, int], None]  # called with the number of finished clips, and of all


class FeatureCache:
    """Features of one base and one set of encoders, in a folder; with `folder=None` they are held in memory. `made`:
    folders of feature files. `timeout`: of decoding one file, as in `Clip.read`. `mode`, `budget`: as `data.cache` and
    `data.budget` of a recipe."""

    def __init__(
        self,
        model: PatchedModel,
        encoders: Sequence[Encoder],
        folder: Path | None = None,
        made: Sequence[Path] = (),
        timeout: Timeout = "auto",
        mode: room.Mode = "keep",
        budget: float | None = None,
    ) -> None:
        self.model, self.folder = model, folder
        self.timeout: Timeout = timeout
        self.mode: room.Mode = mode
        self.budget = budget
        self.keeps = folder is None or mode != "none"  # features of the vision tower, or else pictures
        self.shards = None if folder is None else Shards(folder)
        self._planned: dict[Source, str | None] = {}  # keys
        self.missing = 0  # clips of which the folder had no features when that was planned
        self._folders: dict[str, str] = {}  # real paths of folders of files
        # Whether clips without pictures are of use; by default, if a patch of the model was trained for them.
        self.hears_alone = any(attached.config.sound_alone for attached in model.attached())
        self.refused: dict[Source, str] = {}  # unreadable clips, and why
        self.on_refused: Callable[[Source, str], object] = lambda source, why: None  # called when one is found
        # Beside them in quarantine: where a clip is asked about; and records of the data that are broken.
        self.places: Mapping[Source, Sequence[str]] = {}
        self.broken: Mapping[str, str] = {}
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

    def plan(self, sources: Sequence[Source]) -> list[str]:
        """Decide what is kept of the pictures of these clips, before any is read; says what, and why."""
        if self.folder is None or self.shards is None:
            return []
        self.shards.refresh()
        self._planned = {source: self.key(source) for source in sources}
        entries, keys = self.shards.entries, self._planned.values()
        missing = self.missing = sum(key not in entries for key in keys)
        pictured = sum(f"{key}{PICTURES}" in entries and key not in entries for key in keys)
        # Most pictures are there already: a resumed run goes on as it began, even if there is more room by now.
        mode = "none" if self.mode == "auto" and 2 * pictured > len(sources) else self.mode
        chosen = room.room(self.model.host, mode, self.budget, self.folder, len(sources), missing)
        self.keeps = chosen.features
        left = f"{self.folder}: {self.shards.others:,} files of an earlier version are not used; delete them"
        return [chosen.why, *([left] if self.shards.others else [])]

    def read(self, sources: Sequence[Source], on_clip: OnClip | None = None) -> Features:
        """All readable clips, in the given order; `on_clip` is called after each that is encoded. Those that are not
        readable are listed in the folder."""
        features = self.fill(sources, on_clip)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_list(self.folder / "quarantine.jsonl", self._quarantine())
        return features

    def fill(self, sources: Sequence[Source], on_clip: OnClip | None = None) -> Features:
        """The same without the list, for one of several processes that fill a folder."""
        if self.shards:
            self.shards.refresh()
        # Before a file is read, which may change meanwhile; those of `plan` once only.
        keys = {s: self._planned.pop(s) if s in self._planned else self.key(s) for s in sources}
        found = {source: self._stored(source, key) for source, key in keys.items()}
        fresh = [source for source, stored in found.items() if stored is None]
        with self.shards.filling() if self.shards else nullcontext():
            clips = zip(fresh, self.decoded(fresh), strict=True)
            for done, (source, clip) in enumerate(clips, len(found) - len(fresh) + 1):
                found[source] = self._encode(source, keys[source], clip)
                if on_clip:
                    on_clip(done, len(found))
        return Features({source: stored for source, stored in found.items() if stored is not None})

    def _quarantine(self) -> Iterator[dict[str, object]]:
        """What is left out, and why."""
        for place, why in self.broken.items():
            yield {"record": place, "why": why}
        for source, why in self.refused.items():
            places = {"records": self.places[source]} if source in self.places else {}
            yield {"file": str(source), "why": why, **places}

    def decoded(self, sources: Sequence[Source]) -> Iterator[Clip | MediaError]:
        """Clips as they are read for their features, in order, by worker processes."""
        together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of torchrun that share the machine
        workers = max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // together))
        files = [(source.video, source.options(self.hears)) for source in sources]
        options = self.model.perception.reading(self.encoders)
        return decode_many(files, workers=workers, timeout=self.timeout, **options)

    def _encode(self, source: Source, key: str | None, clip: Clip | MediaError) -> Stored | None:
        """Encode one clip. Never several in one batch: their last bits would depend on each other."""
        try:
            if isinstance(clip, MediaError):
                raise clip
            clip = clip.beside(source.beside(self.hears), timeout=self.timeout)
            if clip.frames is None and not self.hears_alone:
                remedy = "give a film or a picture, or train with train.modalities, which has sound"
                raise MediaError(f"{clip.report.source}: has no pictures; {remedy}")
            features, pictures = self._perceived(clip)
            sides, absent, told = dict(features.sides), dict(features.absent), dict.fromkeys(features.warnings)
            for name, (encoder, made) in self.made.items():
                sides[name], entry = made.find(*identity(source, encoder.spec.sense))
                absent |= {name: entry.absent} if entry.absent else {}
                told |= dict.fromkeys(entry.warnings)
            features = replace(features, sides=sides, absent=absent, warnings=tuple(told), sensors=self._sensors)
        except (MediaError, SignalError) as error:
            self.refused[source] = str(error)
            self.on_refused(source, str(error))
            return None
        self.refused.pop(source, None)
        if self.shards is None or key is None:
            return Stored.of(features)
        key, facts = f"{key}{PICTURES}" if pictures else key, known(features, bool(pictures))
        self.shards.add(key, *record(features, pictures), facts)
        return Stored.told(partial(self._fetch, source, key), facts)

    def _perceived(self, clip: Clip) -> tuple[ClipFeatures, dict[str, Tensor]]:
        """Features of a clip; or those without the vision tower's, and what it reads."""
        if self.keeps or clip.times is None:
            return self.model.encode_clip(clip, self.encoders), {}
        pictures = packed(self.model.host.pictures(clip)) | {"stamps": clip.times}
        return self.model.perception.sense(clip, self.encoders).to("cpu"), pictures

    def key(self, source: Source) -> str | None:
        """The key of a clip in the folder: a digest of the paths, sizes and modification times of its files, the names
        of its signals, the chosen tracks, and the networks. None without a folder, or if a file of the clip is missing,
        or a folder no signal."""
        if self.folder is None:
            return None
        try:
            facts = [fact for file in source.files for fact in self._facts(file)]
        except (OSError, MediaError):
            return None
        chosen = [json.dumps(source.tracks)] if source.tracks else []
        # Earlier versions cached the clip's own sound under a name that has a signal `audio`.
        chosen += ["audio replaced"] if "audio" in dict(source.signals) else []
        return text_digest("|".join([*facts, json.dumps(source.signals), *chosen, self._networks]))[:32]

    def _facts(self, path: Path) -> list[str]:
        """Real path, size and modification time of a file, or of all files in a folder."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        info = os.lstat(path)
        if stat.S_ISREG(info.st_mode):  # of which a training has very many: no more than one look at each
            return [os.path.join(self._folders[folder], name), f"{name}|{info.st_size}|{info.st_mtime_ns}"]
        files = inside(path) if path.is_dir() else [path]
        stats = [(file, file.stat()) for file in files]
        return [str(path.resolve()), *(f"{file.name}|{each.st_size}|{each.st_mtime_ns}" for file, each in stats)]

    def _stored(self, source: Source, key: str | None) -> Stored | None:
        """The clip as it is in the folder; None if it must be encoded."""
        if self.shards is None or key is None:
            return None
        for name in (key, *(() if self.keeps else (f"{key}{PICTURES}",))):
            facts = self.shards.entries[name].known if name in self.shards.entries else {}
            if facts and (self.hears_alone or not facts.get("blind")):
                return Stored.told(partial(self._fetch, source, name), facts)
        return None

    def _fetch(self, source: Source, key: str) -> Finish:
        """Read a clip from its shard; if it is damaged, it will be encoded again."""
        assert self.shards is not None
        try:
            tensors, facts = self.shards.read(key)
        except FileError as error:
            return partial(self._again, source, key, error)
        return partial(self._seen, _features(tensors, facts, self._sensors), tensors, unpacked(tensors))

    def _seen(self, features: ClipFeatures, tensors: Mapping[str, Tensor], pictures: Tensor | None) -> ClipFeatures:
        if pictures is None:
            return features
        return self.model.perception.see(features, pictures, tensors["stamps"]).to("cpu")

    def _again(self, source: Source, key: str, damage: FileError) -> ClipFeatures:
        """Encode a clip whose features are damaged. DataError if that is not possible."""
        assert self.shards is not None
        cause, own = f"{damage.file}: {damage.cause}", self.key(source)
        if own != key.removesuffix(PICTURES):
            raise DataError(f"{cause}; {source} has changed meanwhile, so it cannot be encoded again: start a new run")
        (clip,) = self.decoded([source])
        with self.shards.filling():
            stored = self._encode(source, own, clip)
        if stored is None:
            raise DataError(f"{cause}; it cannot be encoded again: {self.refused[source]}")
        warnings.warn(f"{cause}; {source} was encoded again", stacklevel=2)
        return stored.features


def record(features: ClipFeatures, pictures: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is written of a clip: tensors and texts."""
    tensors = {"vision": features.vision, "tokens": features.tokens, "times": features.times, **pictures}
    tensors |= {} if features.deep is None else {"deep": features.deep}
    present = {key: side for key, side in features.sides.items() if side is not None}
    for key, side in present.items():
        tensors |= {f"{key}.{part}": getattr(side, part) for part in PARTS}
    facts = {"absent": json.dumps(dict(features.absent)), "sides": json.dumps(sorted(features.sides))}
    facts["kinds"] = json.dumps({key: side.kind for key, side in present.items()})
    return tensors, facts | ({"warnings": json.dumps(features.warnings)} if features.warnings else {})


def _features(tensors: Mapping[str, Tensor], facts: Mapping[str, str], sensors: frozenset[str]) -> ClipFeatures:
    """The features that a record holds."""
    sides: dict[str, SideTokens | None] = dict.fromkeys(json.loads(facts["sides"]))
    for key, kind in json.loads(facts["kinds"]).items():
        sides[key] = SideTokens(*(tensors[f"{key}.{part}"] for part in PARTS), kind=kind)
    absent, told = json.loads(facts["absent"]), tuple(json.loads(facts.get("warnings", "[]")))
    parts = tensors["vision"], tensors["tokens"], tensors["times"]
    return ClipFeatures(*parts, sides, absent, tensors.get("deep"), told, sensors)


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
