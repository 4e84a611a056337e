"""A patch with a certificate whose figures are given."""

from __future__ import annotations

from typing import Any

from pave.patch.certificate import Certificate, Gain, LabelledSet, certified
from pave.patch.file import Patch


def gain(low: float = 0.2, clips: int = 40, **facts: Any) -> Gain:
    return Gain(**{"questions": 80, "clips": clips, "value": low + 0.1, "low": low, "high": low + 0.2, **facts})


def make_certificate(patch: Patch, **changes: Any) -> Certificate:
    """A certificate that holds."""
    facts: dict[str, Any] = {
        "sha256": patch.sha256,
        "data": LabelledSet(name="kitchen.jsonl", sha256="ab" * 32, questions=80, clips=40, types="kind"),
        "metric": "match",
        "own": 0.75,
        "gains": {name: gain() for name in ("shuffled", "silent", "envelope", "shifted")},
        "hears": True,
        "not_run": {"capacity": "no such patch was given"},
        "left_out": {},
        "level": 0.99,
        "resamples": 4000,
        "seed": 0,
        "base": "playroom",
        "fingerprint": patch.config.base.fingerprint,
        "frames": patch.config.base.frames,
        "dtype": "float32",
        "prompt": patch.config.prompt,
        "max_new_tokens": 2,
        "versions": {"pave": "0.1.0"},
    }
    return Certificate(**{**facts, **changes})


def proven(patch: Patch, **changes: Any) -> Patch:
    """The patch with a certificate."""
    return certified(patch, make_certificate(patch, **changes))
