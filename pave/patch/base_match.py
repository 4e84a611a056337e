"""Whether a patch fits a base: dimensions, layers and weights.

In: a patch or its config, and a base. Out: the comparison as text, or a PatchMismatch with the remedy.
"""

from __future__ import annotations

from pave.base import Host
from pave.config import BaseFacts, PatchConfig
from pave.errors import PatchMismatch


def refuse_dimensions(made: BaseFacts, host: Host, source: str) -> None:
    """PatchMismatch if the base is of another family or has other dimensions."""
    for key in ("model_type", "dim", "vision_dim", "tokens_per_frame"):
        if getattr(made, key) != getattr(host, key):
            cause = f"was made for {_named(made)} with {key}={getattr(made, key)}, this base has {getattr(host, key)}"
            raise PatchMismatch(source, cause, load_its_base(made))


def _named(facts: BaseFacts) -> str:
    return (facts.repo or facts.model_type) + (f" ({facts.fingerprint[:12]})" if facts.fingerprint else "")


def load_its_base(made: BaseFacts) -> str:
    """The remedy for a base that does not fit."""
    return f"load {made.repo or 'the base it was made for'} and apply it there"


def base_match(config: PatchConfig, host: Host, source: str, strict: bool) -> str:
    """The comparison of a patch's base with this one as text; PatchMismatch if the patch cannot be used. The weights
    are hashed last, as it is slow."""
    made = config.base
    refuse_dimensions(made, host, source)
    if not made.fingerprint:
        return "unknown: the patch does not record the weights of its base"
    if made.fingerprint == host.fingerprint():
        return "exact"
    cause = f"was made for {_named(made)}, this base is {_named(host.facts())}: equal dimensions, different weights"
    if strict:
        fix = (
            "train it again, or update pave"
            if made.repo and made.repo == host.repo
            else f"load {made.repo or 'the base it was made for'}"
        )
        remedy = f"{fix}; or pass strict=False to use it anyway"
        raise PatchMismatch(source, cause, remedy)
    return f"other weights: {cause}"
