"""Whether a patch fits a base: dimensions, layers and weights.

In: a patch or its config, and a base. Out: the comparison as text, or a PatchMismatch with the remedy.
"""

from __future__ import annotations

from pave.base import Host
from pave.config import BaseFacts, PatchConfig
from pave.errors import PatchMismatch


def refuse_dimensions(recorded: BaseFacts, host: Host, source: str) -> None:
    """PatchMismatch if the base is of another family or has other dimensions."""
    for key in ("model_type", "dim", "vision_dim", "tokens_per_frame"):
        if getattr(recorded, key) != getattr(host, key):
            cause = f"was made for {_named(recorded)} with {key}={getattr(recorded, key)}"
            raise PatchMismatch(source, f"{cause}, this base has {getattr(host, key)}", load_its_base(recorded, host))


def _named(facts: BaseFacts) -> str:
    return (facts.repo or facts.model_type) + (f" ({facts.fingerprint[:12]})" if facts.fingerprint else "")


def load_its_base(recorded: BaseFacts, host: Host) -> str:
    """The remedy for a base that does not fit."""
    if recorded.repo and recorded.repo == host.repo:
        return "it was made for this very base, so the patch itself is at fault: download or train it again"
    return f"load {recorded.repo or 'the base it was made for'} and apply it there"


def base_match(config: PatchConfig, host: Host, source: str, strict: bool) -> str:
    """The comparison of a patch's base with this one as text; PatchMismatch if the patch cannot be used. Weights
    are hashed last, since that takes seconds."""
    recorded = config.base
    refuse_dimensions(recorded, host, source)
    if not recorded.fingerprint:
        made = f"; it was made for {recorded.repo}" if recorded.repo not in ("", host.repo) else ""
        return f"unknown: the patch does not record the weights of its base{made}"
    if recorded.fingerprint == host.fingerprint():
        return "exact"
    cause = f"was made for {_named(recorded)}, this base is {_named(host.facts())}: equal dimensions, different weights"
    if strict:
        fix = (
            "train it again, or update pave"
            if recorded.repo and recorded.repo == host.repo
            else f"load {recorded.repo or 'the base it was made for'}"
        )
        remedy = f"{fix}; or pass strict=False to use it anyway"
        raise PatchMismatch(source, cause, remedy)
    return f"other weights: {cause}"
