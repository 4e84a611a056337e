"""Frozen features of clips, computed once and kept on disk: what training and evaluation read at every step.

In: media files. Out: `ClipFeatures`, by file. A file that cannot be read is put on a quarantine list with its reason,
and the run goes on without it. A kept feature is used again only for the same bytes, base, key frames and encoders.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pave.encoder import Encoder
from pave.errors import MediaError
from pave.inputs import ClipFeatures
from pave.media import Clip, decode_many
from pave.sidechannel import SideTokens
from pave.steps import Steps

BATCH = 8  # clips that go through the vision tower together
PARTS = ("x", "times", "spans", "valid")


class FeatureStore:
    """Features of one base and one set of encoders; in a folder, or with `folder=None` kept nowhere."""

    def __init__(self, model: Steps, encoders: Sequence[Encoder], folder: Path | None = None) -> None:
        self.model, self.encoders, self.folder = model, list(encoders), folder
        self.refused: dict[Path, str] = {}  # files that could not be read, and why
        base = model.host
        self._recipe = json.dumps([base.facts().fingerprint, base.frames, str(base.dtype), *self._keys])

    @property
    def _keys(self) -> list[str]:
        return [encoder.spec.preprocessing for encoder in self.encoders]

    def read(self, paths: Sequence[Path]) -> dict[Path, ClipFeatures]:
        """Features of all files that can be read, in the order given."""
        found = {path: self._kept(path) for path in paths}
        for path, features in self._see([path for path, features in found.items() if features is None]):
            found[path] = features
            self._keep(path, features)
        if self.folder is not None:
            lines = [json.dumps({"file": str(path), "why": why}) for path, why in self.refused.items()]
            (self.folder / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in lines))
        return {path: features for path, features in found.items() if features is not None}

    def _see(self, paths: Sequence[Path]) -> Iterator[tuple[Path, ClipFeatures]]:
        waiting: list[tuple[Path, Clip]] = []
        for path, clip in zip(paths, decode_many(paths, frames=self.model.host.frames), strict=True):
            if isinstance(clip, MediaError):
                self.refused[path] = str(clip)
                continue
            waiting.append((path, clip))
            if len(waiting) == BATCH:
                yield from self._encode(waiting)
                waiting = []
        yield from self._encode(waiting)

    def _encode(self, clips: Sequence[tuple[Path, Clip]]) -> Iterator[tuple[Path, ClipFeatures]]:
        if clips:
            features = self.model.encode([clip for _, clip in clips], self.encoders)
            yield from zip([path for path, _ in clips], features, strict=True)

    def _file(self, folder: Path, path: Path) -> Path:
        """Where a clip's features are kept: named by its place, size and time of change, and by who looked at it."""
        facts = path.stat()
        key = f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{self._recipe}"
        return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _keep(self, path: Path, features: ClipFeatures) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"vision": features.vision, "tokens": features.tokens, "times": features.times}
        for key, side in features.sides.items():
            if side is not None:
                tensors |= {f"{key}.{part}": getattr(side, part) for part in PARTS}
        target = self._file(self.folder, path)
        part = target.with_suffix(f".{os.getpid()}")
        facts = {"absent": json.dumps(dict(features.absent)), "sides": json.dumps(sorted(features.sides))}
        kinds = {key: side.kind for key, side in features.sides.items() if side is not None}
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, facts | {"kinds": json.dumps(kinds)})
        os.replace(part, target)

    def _kept(self, path: Path) -> ClipFeatures | None:
        """What was kept for this very file; None for what must be seen (again), a damaged file included."""
        if self.folder is None:
            return None
        try:
            with safe_open(self._file(self.folder, path), "pt") as file:
                facts: Mapping[str, str] = file.metadata() or {}
                kinds = json.loads(facts["kinds"])
                sides: dict[str, SideTokens | None] = {}
                for key in json.loads(facts["sides"]):
                    parts = [file.get_tensor(f"{key}.{part}") for part in PARTS] if key in kinds else None
                    sides[key] = SideTokens(*parts, kind=kinds[key]) if parts else None
                core: list[torch.Tensor] = [file.get_tensor(name) for name in ("vision", "tokens", "times")]
                return ClipFeatures(*core, sides, json.loads(facts["absent"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
