"""Frozen features of clips, computed once and kept on disk: what training and evaluation read at every step.

In: media files. Out: `ClipFeatures`, by file. A file that cannot be read is put on a quarantine list with its reason,
and the run goes on without it. A kept feature is used again only for the same file, eyes of the base, key frames and
encoders, and only when every bit of it is as it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pave import storage
from pave.base import Base
from pave.encoder import Encoder
from pave.errors import DataError, MediaError, SignalError
from pave.inputs import ClipFeatures
from pave.media import Clip, decode_many
from pave.sidechannel import SideTokens
from pave.steps import Steps

MAX_WORKERS = 8  # decoding processes; by then the vision tower is what takes the time
PARTS = ("x", "times", "spans", "valid")


class FeatureStore:
    """Features of one base and one set of encoders; in a folder, or with `folder=None` kept nowhere."""

    def __init__(self, model: Steps, encoders: Sequence[Encoder], folder: Path | None = None) -> None:
        self.model, self.encoders, self.folder = model, list(encoders), folder
        self.refused: dict[Path, str] = {}  # files that could not be read, and why
        eyes = "" if folder is None else _eyes(model.host)
        self._looker = json.dumps([eyes, *(encoder.spec.preprocessing for encoder in encoders)])

    def read(self, paths: Sequence[Path]) -> dict[Path, ClipFeatures]:
        """Features of all files that can be read, in the order given."""
        found = {path: self._kept(path) for path in paths}
        fresh = [path for path, features in found.items() if features is None]
        clips = decode_many(fresh, workers=min(MAX_WORKERS, os.cpu_count() or 1), frames=self.model.host.frames)
        for path, clip in zip(fresh, clips, strict=True):
            found[path] = self._see(path, clip)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"file": str(path), "why": why}) for path, why in self.refused.items()]
            (self.folder / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return {path: features for path, features in found.items() if features is not None}

    def _see(self, path: Path, clip: Clip | MediaError) -> ClipFeatures | None:
        """Look at one clip. Never at several in one pass: their last bits would depend on their neighbours."""
        try:
            if isinstance(clip, MediaError):
                raise clip
            features = self.model.encode_clip(clip, self.encoders)
        except (MediaError, SignalError) as error:
            self.refused[path] = str(error)
            return None
        self.refused.pop(path, None)
        if self.folder is not None:
            self._keep(self._file(self.folder, path), features)
        return features

    def _file(self, folder: Path, path: Path) -> Path:
        """Where a clip's features are kept: named by its place, size and time of change, and by who looked at it."""
        facts = path.stat()
        key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{self._looker}"
        return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _keep(self, target: Path, features: ClipFeatures) -> None:
        tensors = {"vision": features.vision, "tokens": features.tokens, "times": features.times}
        present = {key: side for key, side in features.sides.items() if side is not None}
        for key, side in present.items():
            tensors |= {f"{key}.{part}": getattr(side, part) for part in PARTS}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        facts = {"absent": json.dumps(dict(features.absent)), "sides": json.dumps(sorted(features.sides))}
        facts["kinds"] = json.dumps({key: side.kind for key, side in present.items()})
        part = target.with_suffix(f".{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, facts | {"sha256": storage.digest(facts, tensors)})
            os.replace(part, target)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{target.parent}: features cannot be kept there ({error}); make room") from None
        finally:
            part.unlink(missing_ok=True)

    def _kept(self, path: Path) -> ClipFeatures | None:
        """What was kept for this very file; None for what must be seen (again), a damaged file included."""
        if self.folder is None:
            return None
        try:
            with safe_open(self._file(self.folder, path), "pt") as file:
                facts: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except (OSError, SafetensorError):
            return None
        if facts.pop("sha256", "") != storage.digest(facts, tensors):
            return None
        kinds = json.loads(facts["kinds"])
        sides: dict[str, SideTokens | None] = dict.fromkeys(json.loads(facts["sides"]))
        for key, kind in kinds.items():
            sides[key] = SideTokens(*(tensors[f"{key}.{part}"] for part in PARTS), kind=kind)
        absent = json.loads(facts["absent"])
        return ClipFeatures(tensors["vision"], tensors["tokens"], tensors["times"], sides, absent)


def _eyes(base: Base) -> str:
    """sha256 of all that decides how a base sees: its numbers of frames and pixels, its config of vision, and every
    tensor but the language model's."""
    config = {key: value for key, value in base.model.config.to_dict().items() if key.startswith("vision")}
    facts = json.dumps([base.frames, *base.size, *base.mean, *base.std, str(base.dtype), config], default=str)
    speech = {id(tensor) for tensor in base.language_model.state_dict(keep_vars=True).values()}
    tensors = base.model.state_dict(keep_vars=True).items()
    return storage.digest(facts, {name: tensor for name, tensor in tensors if id(tensor) not in speech})
